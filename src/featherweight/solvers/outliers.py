"""SpQR's decision: weights whose rounding would cost too much are kept, as a residual beside their code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from featherweight.grids.base import Grid
from featherweight.grids.two_level import Quantized, TwoLevelGrid, TwoLevelParameters
from featherweight.kernels.keeping import LIMITS, Keeping
from featherweight.kernels.registry import accelerated
from featherweight.kernels.two_level import GROUP, SecondLevel, TwoLevelFitting
from featherweight.kernels.walking import Walking
from featherweight.solvers.damping import Factor
from featherweight.solvers.decision import Block, Decision
from featherweight.solvers.groups import Groups
from featherweight.solvers.result import Solved


class KeepOutliers(Decision):
    """Keep weight `t` where rounding it costs `r_jj² (t − ŵ)² > τ`; fit groups as if likely outliers were not there.

    A kept weight's code is that of 0, and the residual `t − ŵ(0)` is stored: `ŵ(0) + residual` is what the walk goes on
    with and what a reload adds up, exactly. Inputs that were never active cost nothing, so they keep nothing.

    Args:
        grid: of the walk.
        factor: of the walk.
        threshold: τ, absolute; infinite for no outliers.
        rows: of the weight.
        leave_one_out: fit each group without the values that gain more than τ by being left out; else to all values.
        budget: outliers at most, counted along the walk; in the column where it ends the dearest ones are kept.
        narrow: store residuals as float8_e5m2; else as float16.
    """

    def __init__(
        self,
        grid: TwoLevelGrid,
        factor: Factor,
        threshold: float,
        rows: int,
        leave_one_out: bool = True,
        budget: int | None = None,
        narrow: bool = False,
    ) -> None:
        self.grid, self.order, self.threshold, self.left, self.narrow = grid, factor.order, threshold, budget, narrow
        self.fits_all = not leave_one_out or threshold == float("inf")
        self.looks_at_columns = budget is not None
        self.fitted: list[TwoLevelParameters] = []
        shape, device = (len(factor.order), rows), factor.order.device
        self.written: tuple[Tensor, Tensor, SecondLevel] | None = None
        self.kept = torch.zeros(shape, dtype=torch.bool, device=device)
        self.residuals = torch.zeros(shape, dtype=torch.float16, device=device)

    def start_group(self, grid: Grid, values: Tensor, importance: Tensor) -> TwoLevelParameters:
        """Fit both levels to `values [rows, width]` without the likely outliers."""
        if not self.fits_all:
            values = replace_likely_outliers(self.grid, values, importance, self.threshold)
        self.fitted.append(self.grid.fit(values, importance))
        return self.fitted[-1]

    @property
    def in_blocks(self) -> bool:  # type: ignore[override]
        """Whether kernels fit this grid: real zeros, both levels in codes, and as many outliers as there are."""
        own = self.grid
        plain = not (own.round_zero or own.symmetric or own.zero_symmetric or self.looks_at_columns)
        return plain and own.scale_bits is not None and own.zero_bits is not None

    def two_levels(self, groups: Groups) -> tuple[TwoLevelFitting, SecondLevel] | None:
        """Of this grid, where kernels fit it."""
        own, (numbers, rows), device = self.grid, groups.scale.shape, groups.scale.device
        if not self.in_blocks or own.scale_bits is None or own.zero_bits is None:
            return None
        gain = None if self.fits_all else self.threshold
        levels = (2**own.scale_bits - 1, 2**own.zero_bits - 1)
        fitting = TwoLevelFitting(own.largest_code, *levels, own.second_group_size, own.fit_by == "weighted", gain, self._fit)
        codes = torch.empty(2, numbers, rows, dtype=torch.uint8, device=device)
        grids = torch.empty(2, numbers, -(-rows // own.second_group_size), 2, dtype=torch.float16, device=device)
        second = SecondLevel(codes[0], codes[1], grids[0], grids[1])
        return fitting, second

    def walked_by_kernel(self, walking: Walking) -> None:
        """Both levels will be there."""
        if walking.second_level is not None:
            self.written = walking.scale, walking.zero, walking.second_level

    def whole_blocks(self, grid: Grid, groups: Groups, block: int) -> Callable[[Block], None] | None:
        """By the kernel for two-level grids in groups of 16."""
        signature = {"columns": block, "inputs": groups.width, "group_size": groups.size}
        signature["second_group_size"] = self.grid.second_group_size
        kernel = accelerated("sweep_two_level", signature, groups.scale.device)
        told = None if kernel is None else self.two_levels(groups)
        if kernel is None or told is None:
            return None
        self.written = groups.scale, groups.zero, told[1]
        return partial(self._block, kernel, *told)

    def _fit(self, values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, SecondLevel]:
        """One group, as kernels are told."""
        fitted = self.start_group(self.grid, values, importance)
        scales, zeros = fitted.scales, fitted.zeros
        assert zeros is not None and scales.codes is not None and zeros.codes is not None
        assert scales.grids is not None and zeros.grids is not None
        stored = SecondLevel(scales.codes.T, zeros.codes.T, scales.grids.transpose(0, 1), zeros.grids.transpose(0, 1))
        return fitted.scale[:, 0], fitted.zero[:, 0], stored

    def _block(self, kernel: Callable[..., None], fitting: TwoLevelFitting, stored: SecondLevel, block: Block) -> None:
        groups = slice(block.first // GROUP, (block.first + len(block.target)) // GROUP)
        kernel(
            block.target, block.original, block.feedback, block.importance, block.scale, block.zero, stored.of(groups), fitting,
            block.codes, block.error, block.loss, self.keeping(block.first, block.first + len(block.target)),
        )  # fmt: skip

    def keeping(self, first: int, last: int) -> Keeping | None:
        """The threshold, and where to write what is kept."""
        if self.threshold == float("inf"):
            return None
        return Keeping(self.threshold, self.narrow, self.kept[first:last], self.residuals[first:last])

    def column(self, first: int, values: Tensor, decoded: Tensor, importance: Tensor) -> Tensor:
        """Rounded values, or kept ones within the budget, `[1, rows]`."""
        assert self.left is not None
        cost = (values - decoded).square_().mul_(importance)
        kept = cost > self.threshold
        count = int(kept.sum())
        if count > self.left:
            chosen = cost.masked_fill(~kept, -1.0)[0].topk(self.left).indices
            kept = torch.zeros_like(kept).index_fill_(1, chosen, True)
        self.left -= min(count, self.left)
        parameters, limit = self.fitted[-1], LIMITS[self.narrow]
        dense = self.grid.decode(self.grid.encode(torch.zeros_like(values.T), parameters), parameters).T
        residual = (values - dense).clamp_(-limit, limit).to(torch.float16)
        if self.narrow:
            residual = residual.to(torch.float8_e5m2).to(torch.float16)
        self.kept[first], self.residuals[first] = kept[0], residual[0]
        return torch.where(kept, dense + residual.to(torch.float32), decoded)

    @property
    def count(self) -> int:
        """Weights kept."""
        return int(self.kept.sum())

    def stored(self, solved: Solved, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, where weights are kept, and residuals, each `[rows, in]` in the stored order of inputs."""
        back = self.order.argsort()
        kept, residuals = self.kept[back].T, self.residuals[back].T
        of_zero = solved.zeros.round().clamp_(0, self.grid.largest_code).to(torch.uint8)
        groups = back.div(group_size, rounding_mode="floor")
        return torch.where(kept, of_zero[:, groups], solved.codes), kept, residuals

    def parameters(self) -> tuple[Quantized, Quantized | None]:
        """Scales and zeros of all groups."""
        if self.written is not None:
            scale, zero, second = self.written
            return (
                Quantized(scale.T.contiguous(), second.scale_codes.T.contiguous(), _beside(second.scale_grids)),
                Quantized(zero.T.contiguous(), second.zero_codes.T.contiguous(), _beside(second.zero_grids)),
            )
        zeros = [group.zeros for group in self.fitted if group.zeros is not None]
        return Quantized.join([group.scales for group in self.fitted]), Quantized.join(zeros) if zeros else None


def _beside(grids: Tensor) -> Tensor:
    """`[groups, …]` with the groups side by side."""
    return grids.transpose(0, 1).contiguous()


def outlier_scale(weight: Tensor, factor: Factor) -> float:
    """`σ = mean_j (Var_rows(W_:j) · r_jj²)`, unbiased variance, of `weight [rows, in]` with the columns of dead inputs zeroed."""
    if len(weight) < 2:
        return 0.0
    variance = torch.where(factor.dead, 0.0, weight)[:, factor.order].var(0)
    return float((variance * factor.importance()).mean())


def spearman_order(weight: Tensor) -> Tensor:
    """Columns in a greedy chain of rank correlation, `[in]`: from column 0 always on to the one most like the last.

    Likeness is the cosine between the mean-centred ranks of two columns of `weight [rows, in]`.
    """
    ranks = weight.argsort(dim=0, stable=True).argsort(dim=0).to(torch.float32)
    ranks = torch.nn.functional.normalize(ranks - ranks.mean(0), dim=0)
    likeness = ranks.T @ ranks
    order, left = [0], torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    for _ in range(weight.shape[1] - 1):
        left[order[-1]] = False
        order.append(int(likeness[order[-1]].masked_fill(~left, -torch.inf).argmax()))
    return torch.tensor(order, device=weight.device)


def gains_of_leaving_out(grid: TwoLevelGrid, values: Tensor, importance: Tensor) -> Tensor:
    """How much the weighed error of a group falls if one value is taken out and the first level fitted to the rest.

    `gain_k = Σ_j i_j (ŵ_j − w_j)² − Σ_{j≠k} i_j (ŵ_j⁽ᵏ⁾ − w_j)²`, with `ŵ⁽ᵏ⁾` on the grid fitted without value `k`. That grid
    is the old one unless `k` is the smallest or the largest value: three fits serve for all `k`, and every other gain is
    the value's own error.

    Args:
        grid: whose first level is fitted.
        values: `[rows, width]`.
        importance: `i [width]`.

    Returns:
        `[rows, width]`.

    Source: SpQR's code, `get_leave_one_out_error`, there with one fit per value.
    """

    def errors(low: Tensor, high: Tensor) -> Tensor:
        parameters = grid.between(low, high)
        return grid.decode(grid.encode(values, parameters), parameters).sub_(values).square_().mul_(importance)

    ordered, positions = values.sort(-1)
    width = values.shape[-1]
    own = errors(ordered[:, :1], ordered[:, -1:])
    if width == 1:
        return own
    base, gains = own.sum(-1, keepdim=True), own.clone()
    for place, low, high in ((0, 1, width - 1), (width - 1, 0, width - 2)):
        position = positions[:, place : place + 1]
        without = errors(ordered[:, low : low + 1], ordered[:, high : high + 1]).scatter_(1, position, 0.0)
        gains.scatter_(1, position, base - without.sum(-1, keepdim=True))
    return gains


def replace_likely_outliers(grid: TwoLevelGrid, values: Tensor, importance: Tensor, threshold: float) -> Tensor:
    """`values [rows, width]` with those that gain more than `threshold` replaced by the mean of their row's others.

    Args:
        grid: to be fitted to the result.
        importance: `[width]`.
        threshold: absolute, in the unit of `importance · values²`.
    """
    likely = gains_of_leaving_out(grid, values, importance) > threshold
    count = (~likely).sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(likely, 0.0, values).sum(-1, keepdim=True) / count
    return torch.where(likely, mean, values)
