"""SpQR: small groups whose scales are quantized too, and the few weights that hurt most kept in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.two_level import Fit, TwoLevelGrid
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.packed.base import described_bytes
from featherweight.packed.sparse_rows import VALUE_DTYPES, SparseRows
from featherweight.packed.sum import Sum
from featherweight.packed.two_level import TwoLevel
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.outliers import KeepOutliers, outlier_scale, spearman_order
from featherweight.solvers.result import Solved
from featherweight.solvers.sweep import sweep

Order = Literal["act_order", "identity", "spearman"]

#: The settings of the `spqr-pareto` recipes: the best quality for the bytes.
_PARETO: dict[str, Any] = {
    "group_size": 16, "second_group_size": 64, "outlier_threshold": 0.8, "outlier_bits": 8,
    "order": "act_order", "damping": 0.01, "fit": "weighted",
}  # fmt: skip

#: Walks tried to find the threshold of an outlier share, and the excess over the share that ends the search.
SEARCHES, EXCESS = 10, 0.02


@dataclass(frozen=True)
class SpQR(Method):
    """GPTQ's walk on a two-level grid, where a weight that costs more than `τ = outlier_threshold · σ` is kept.

    `σ = mean_j (Var_rows(W_:j) r_jj²)` of each linear. Linears are solved one by one: their rows share second-level grids.
    Against the authors' code: groups of equal values keep their values (there they get the range −1 to 1); what is evaluated
    is what is stored, outliers included; inputs need not be multiples of `group_size`, nor outputs of `second_group_size`.

    Attributes:
        bits: of a code, 2 to 8.
        group_size: inputs that share a scale, in the order of the walk.
        scale_bits, zero_bits: of a scale's and a zero's code; None keeps them in float16.
        second_group_size: consecutive outputs that share a second-level grid.
        outlier_threshold: relative to σ; None or infinite for no outliers.
        outlier_share: keep exactly this share of the weights of each linear instead; the threshold is searched.
        simplified_outliers: fit groups to all their values, likely outliers included.
        order: of the walk: by falling diagonal of `H`, as stored, or a greedy chain of rank correlation.
        damping: λ ≥ 0, added to the diagonal relative to its mean.
        round_zero: round zeros to integers.
        symmetric: fix zeros in the middle.
        zero_symmetric: second grids of the zeros run from `−a` to `a` (the authors' `qq_zero_sym`).
        fit: "minmax" as the authors; "weighted" searches ranges and the codes of scales and zeros, see `TwoLevelGrid`.
        outlier_bits: of a kept weight's residual, 16 or 8 (float8_e5m2: the walk makes up for that rounding too).
        max_outlier_share: the plan's bound; more outliers than this are an error.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "spqr"
    summary: ClassVar[str] = "second-order rounding on a two-level grid in small groups, sensitive weights kept in 16 bits"
    source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2306.03078, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {
        f"pareto-{bits}bit": ({"bits": bits, "scale_bits": second, "zero_bits": second, "max_outlier_share": most, **_PARETO},)
        for bits, second, most in ((2, 3, 0.05), (3, 3, 0.01), (4, 4, 0.01), (6, 6, 0.01))
    }

    bits: int = 3
    group_size: int = 16  # never None: a two-level grid needs groups
    scale_bits: int | None = 3
    zero_bits: int | None = 3
    second_group_size: int = 16
    outlier_threshold: float | None = 0.2
    outlier_share: float | None = None
    simplified_outliers: bool = False
    order: Order = "act_order"
    damping: float = 1.0
    round_zero: bool = False
    symmetric: bool = False
    zero_symmetric: bool = False
    fit: Fit = "minmax"
    outlier_bits: Literal[16, 8] = 16
    max_outlier_share: float = 0.05

    def __post_init__(self) -> None:
        """Check the settings."""
        if type(self.group_size) is not int or self.group_size < 1:
            raise FeatherweightError(
                "a two-level grid needs groups of inputs", found=self.group_size, expected="1 or more", fix="use group_size: 16"
            )
        self.grid()
        if self.order not in get_args(Order):
            raise FeatherweightError(
                "unknown order of columns", found=self.order, expected=", ".join(get_args(Order)), fix="use order: act_order"
            )
        limits = {
            "damping": (self.damping, "0 or more", self.damping >= 0),
            "outlier_threshold": (self.outlier_threshold, "0 or more, or null", not self._threshold() < 0),
            "outlier_share": (self.outlier_share, "0 to 1, or null", 0 <= (self.outlier_share or 0) <= 1),
            "max_outlier_share": (self.max_outlier_share, "0 to 1", 0 <= self.max_outlier_share <= 1),
        }
        for setting, (found, expected, fits) in limits.items():
            if not fits:
                raise FeatherweightError(f"{setting} out of range", found=found, expected=expected)

    def grid(self) -> TwoLevelGrid:
        """The grid of these settings."""
        second = (self.scale_bits, self.zero_bits, self.second_group_size)
        return TwoLevelGrid(self.bits, *second, self.round_zero, self.symmetric, self.zero_symmetric, self.fit)

    @property
    def exact(self) -> bool:
        """Bytes are known in advance unless a threshold decides how many weights are kept."""
        return not self.keeps_outliers or self.outlier_share is not None

    @property
    def keeps_outliers(self) -> bool:
        """Whether there is a sparse term."""
        return self._threshold() != float("inf") if self.outlier_share is None else self.outlier_share > 0

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """A `TwoLevel`, plus `SparseRows` with the largest number of outliers there may be.

        Raises:
            FeatherweightError: a step before stored `current` otherwise than dense; outliers that would take more than 16 bits.
        """
        self._check_dense(str(current["kind"]))
        rows, columns = current["shape"]
        dense = TwoLevel.describe((rows, columns), self.group_size, self.grid(), self.order != "identity")
        if not self.keeps_outliers:
            return dense
        described = Sum.describe(
            [dense, SparseRows.describe((rows, columns), self._outliers(rows * columns), self.outlier_bits)]
        )
        self._check_size(described)
        return described

    def _check_size(self, described: Mapping[str, Any]) -> None:
        rows, columns = described["shape"]
        bits = 8 * described_bytes(described) / (rows * columns)
        if bits > 16:
            setting = "max_outlier_share" if self.outlier_share is None else "outlier_share"
            raise FeatherweightError(
                "with so many outliers the storage would be larger than 16 bits",
                found=f"{setting}: {getattr(self, setting)}, {bits:.2f} bits a weight in a linear of {rows} x {columns}",
                expected="at most 16 bits a weight",
                fix=f"use {setting}: 0.05",
            )

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve linear by linear on the shared Hessian.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; a `current` that is not dense; more outliers
                than `max_outlier_share`.
        """
        for name, current in problem.current.items():
            self._check_dense(current.kind, name)
        hessian, count = problem.hessian(self.name, "rtn")
        shared: Factor | None = None
        compressed = {}
        for name, current in problem.current.items():
            weight = current.dequantize()
            if shared is None or self.order == "spearman":
                order = self._order(weight, hessian)
                shared = factorise(hessian, self.damping, order=order, name=name, samples=count)
            compressed[name] = self._compress(name, weight, shared)
        return compressed

    def _compress(self, name: str, weight: Tensor, factor: Factor) -> Compressed:
        """One linear."""
        solved, decision = self._solve(weight, factor)
        codes, kept, residuals = decision.stored(solved, self.group_size)
        rows, columns = weight.shape
        if self.keeps_outliers and decision.count > self._outliers(rows * columns):
            raise FeatherweightError(
                f"spqr keeps more weights of {name} than planned, the storage would grow",
                found=f"{decision.count / weight.numel():.4f} of the weights above the threshold",
                expected=f"at most max_outlier_share: {self.max_outlier_share}",
                fix="raise outlier_threshold or max_outlier_share, or set outlier_share",
            )
        index = None
        if self.order != "identity":
            walked = torch.arange(columns, device=weight.device).div(self.group_size, rounding_mode="floor")
            index = walked[factor.order.argsort()]
        scales, zeros = decision.parameters()
        packed: TwoLevel | Sum = TwoLevel.from_codes(codes, scales, zeros, self.grid(), self.group_size, index)
        if self.keeps_outliers:
            packed = Sum((packed, SparseRows.from_dense(residuals.to(VALUE_DTYPES[self.outlier_bits]), kept)))
        share = decision.count / weight.numel()
        energy = float(factor.row_energy(weight).sum())
        error = float(factor.row_energy(weight - solved.decoded).sum())
        return Compressed(
            packed,
            {
                "solver": "sweep",
                "relative_error": error / energy if energy > 0 else 0.0,
                "outlier_share": share,
                "nominal_bits": self.nominal_bits(share),
                "stored_bits": 8 * packed.nbytes / weight.numel(),
                "damping": factor.damping_used,
                "dead_columns": int(factor.dead.sum()),
            },
        )

    def _solve(self, weight: Tensor, factor: Factor) -> tuple[Solved, KeepOutliers]:
        """The walk at the threshold, or at the one that keeps `outlier_share`."""
        sigma = outlier_scale(weight, factor)
        if self.outlier_share is None or not self.keeps_outliers:
            return self._walk(weight, factor, self._threshold() * sigma if self.keeps_outliers else float("inf"))
        wanted = self._outliers(weight.numel())
        low, high, threshold = 0.0, float("inf"), 0.2 * sigma
        for _ in range(SEARCHES):
            count = self._walk(weight, factor, threshold)[1].count
            low, high = (threshold, high) if count >= wanted else (low, threshold)
            if wanted <= count <= (1 + EXCESS) * wanted:
                break
            threshold = 4 * low if high == float("inf") else high / 4 if low == 0 else (low * high) ** 0.5
        solved, decision = self._walk(weight, factor, low if low > 0 else -1.0, wanted)
        return solved, decision

    def _walk(self, weight: Tensor, factor: Factor, threshold: float, budget: int | None = None) -> tuple[Solved, KeepOutliers]:
        narrow, leave_one_out = self.outlier_bits == 8, not self.simplified_outliers
        decision = KeepOutliers(self.grid(), factor, threshold, len(weight), leave_one_out, budget, narrow)
        return sweep(weight, factor, self.grid(), self.group_size, decision=decision), decision

    def nominal_bits(self, share: float) -> float:
        """Bits a weight as the paper counts them, for this share of outliers: neither offsets, nor order, nor padding.

        `b + (b_s + b_z)/g + 64/(g · g₂) + 32 · share`, less what is not stored.
        """
        second, bits = 32 / self.second_group_size, float(self.bits)
        bits += (16 if self.scale_bits is None else self.scale_bits + second) / self.group_size
        if self.grid().integer_zeros:
            bits += self.bits / self.group_size
        elif not self.symmetric:
            bits += (16 if self.zero_bits is None else self.zero_bits + second) / self.group_size
        return bits + (16 + self.outlier_bits) * share

    def _threshold(self) -> float:
        return float("inf") if self.outlier_threshold is None else self.outlier_threshold

    def _outliers(self, weights: int) -> int:
        """Outliers of a linear: exactly, or at most."""
        return round(self.outlier_share * weights) if self.outlier_share is not None else int(self.max_outlier_share * weights)

    def _order(self, weight: Tensor, hessian: Tensor) -> Tensor | None:
        if self.order == "identity":
            return None
        return spearman_order(weight) if self.order == "spearman" else hessian.diagonal().argsort(descending=True, stable=True)

    def _check_dense(self, kind: str, name: str = "") -> None:
        if kind != "dense":
            raise FeatherweightError(
                f"spqr starts from dense weights{' in ' + name if name else ''}",
                found=f"a step before stored them as {kind}",
                expected="dense",
                fix="use method: gptq after pruning, its levels hold 0" if kind == "masked" else "make spqr the first step",
            )
