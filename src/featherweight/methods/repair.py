"""Repair: whatever was dropped and rounded before, the weights that are kept make up for it as well as they can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import UniformGrid
from featherweight.kernels.bits import pack, unpack
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.methods.dropping import Fixed
from featherweight.methods.gptq import GPTQ
from featherweight.methods.grid_settings import GridName
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.integer import Integer
from featherweight.packed.masked import Masked
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.refit import STEPS, refit_kept
from featherweight.solvers.sweep import sweep

#: The grid of a stored weight, by its element format.
_GRIDS: dict[str | None, GridName] = {None: "integer", "e4m3": "fp8", "e2m1": "fp4"}


@dataclass(frozen=True)
class Repair(Method):
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` over the values of the weights that are kept; mask, bits and bytes stay as they are.

    First the kept weights' least-squares optimum `X` for the original `W` (`refit_kept`). On a grid then GPTQ's walk of `X`
    on a grid of the same bits and groups; for values on the mask the objective is that of `W` less a constant, since `X` is
    the projection. A linear is changed only where its objective falls: this step never raises the error. Both halves of
    Optimal Brain Restoration (compensating drops in what is kept, and rounding in what is rounded later) in this order.

    Attributes:
        damping: λ ≥ 0, added to the diagonal relative to its mean.
        refit: steps of conjugate gradients.
        keep_grid: of integers, walk on the scales and zero points that are there instead of fitting new ones.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "repair"
    summary: ClassVar[str] = "let the kept weights make up for all that was dropped and rounded; never raises the error"
    source: ClassVar[str] = "after Optimal Brain Restoration (Guo et al. 2025, arXiv:2509.11177); Frantar et al. 2022"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {
        "learned-50-4bit": ({"method": "besa"}, {}, {"method": "gptq", "bits": 4, "group_size": 128})
    }

    damping: float = 0.01
    refit: int = STEPS
    keep_grid: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.damping >= 0 or self.refit < 1:
            raise FeatherweightError(
                "repair cannot work so", found=f"damping {self.damping}, refit {self.refit}",
                expected="damping 0 or more, refit 1 or more", fix="leave them out",
            )  # fmt: skip

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """What `current` is.

        Raises:
            FeatherweightError: values that are neither dense nor on a grid of `GPTQ`; with `keep_grid` other than integers in
                groups of consecutive inputs.
        """
        leaf = _leaf(current)
        if self.keep_grid and (leaf["kind"] != "integer" or leaf.get("group_index")):
            raise FeatherweightError(
                "repair finds no grid to keep", found=f"{leaf['kind']} values{', groups as walked' if leaf.get('group_index') else ''}",
                expected="integers in groups of consecutive inputs", fix="leave keep_grid out",
            )  # fmt: skip
        return dict(current)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Repair each linear of the input.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; what `storage` refuses.
        """
        for current in problem.current.values():
            self.storage(current.description(), problem.dtype)
        hessian, count = problem.hessian(self.name, "rtn")
        factor = factorise(hessian, self.damping, name=" and ".join(problem.current), samples=count)
        damped = factor.damped(hessian)
        return {name: self._repaired(name, current, problem, factor, damped) for name, current in problem.current.items()}

    def _repaired(self, name: str, current: PackedWeight, problem: Problem, factor: Factor, hessian: Tensor) -> Compressed:
        weight, support = problem.weights[name], current.support
        kept = torch.ones_like(weight, dtype=torch.bool) if support is None else support.to(weight.device)
        values = current.dequantize().to(weight.device)
        best = refit_kept(weight.masked_fill(factor.dead, 0.0), values * ~factor.dead, kept, hessian, self.refit)
        again = self._on_grid(current, best, kept, factor) if self.keep_grid else None
        repaired = again or self._stored(name, current, best, kept, problem)
        before = float(factor.row_energy(weight - values).sum())
        after = float(factor.row_energy(weight - repaired.dequantize().to(weight.device)).sum())
        energy = float(factor.row_energy(weight).sum())
        chosen, error = (repaired, after) if after < before else (current, before)
        ratio = 1 / energy if energy > 0 else 0.0
        facts = {"relative_error": error * ratio, "error_before_repair": before * ratio, "damping": factor.damping_used}
        return Compressed(chosen, {**facts, "solver": "repair" if after < before else "as before"})

    def _on_grid(self, current: PackedWeight, best: Tensor, kept: Tensor, factor: Factor) -> PackedWeight:
        """`best` walked on the grid of `current`."""
        leaf = current.values if isinstance(current, Masked) else current
        assert isinstance(leaf, Integer)  # `storage` saw to it
        grid = UniformGrid(leaf.bits, leaf.symmetric, scale_dtype=leaf.scales.dtype)
        scales, middle = leaf.scales.float(), torch.full(leaf.scales.shape, 2.0 ** (leaf.bits - 1), device=best.device)
        zeros = middle if leaf.zeros is None else unpack(leaf.zeros, leaf.bits, leaf.groups).float()
        walked = sweep(best, factor, grid, leaf.group_size, decision=Fixed((~kept).T, scales, zeros))
        packed = replace(leaf, codes=pack(walked.codes, leaf.bits))
        return Masked.of(packed, kept, current.description()) if isinstance(current, Masked) else packed

    def _stored(self, name: str, current: PackedWeight, best: Tensor, kept: Tensor, problem: Problem) -> PackedWeight:
        described, leaf = current.description(), _leaf(current.description())
        rounded, masked = leaf["kind"] != "dense", described["kind"] == "masked"
        dense: PackedWeight = Dense(best if rounded else best.to(problem.dtype))
        if masked:
            dense = Masked.of(dense, kept, Masked.describe_like(described, dense.description()))
        if not rounded:
            return dense
        rounding = GPTQ(
            bits=leaf["bits"], group_size=leaf["group_size"], symmetric=leaf.get("symmetric", True), damping=self.damping,
            order="dynamic" if leaf.get("group_index") else "none", scale_dtype=leaf["scale_dtype"],
            grid=_GRIDS[leaf.get("element")],
        )  # fmt: skip
        one = replace(problem, weights={name: problem.weights[name]}, current={name: dense})
        return rounding.compress(one)[name].weight


def _leaf(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Description of the values, beneath a mask or not.

    Raises:
        FeatherweightError: neither dense nor on a grid of `GPTQ`.
    """
    leaf: Mapping[str, Any] = described["values"] if described["kind"] == "masked" else described
    if leaf["kind"] not in ("dense", "integer", "floating"):
        raise FeatherweightError(
            "repair cannot change these values", found=f"weights stored as {leaf['kind']}",
            expected="dense, integer or floating values", fix="put repair after a step that prunes or rounds to these",
        )  # fmt: skip
    return leaf
