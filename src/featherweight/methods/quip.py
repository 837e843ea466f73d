"""QuIP#: weights made incoherent by random rotations on both sides, then rounded eight at a time to an E8 codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.e8 import E8Grid
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.block_tuning import finished, tune_block
from featherweight.methods.incoherence import Incoherence, describe_rotation, input_factors
from featherweight.models.axis import DIAGONAL
from featherweight.packed.base import PackedWeight
from featherweight.packed.lattice import Lattice
from featherweight.packed.maps import describe_map
from featherweight.packed.rotated import Rotated
from featherweight.packed.signs import describe_real_signs
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.vectors import VectorSolved, solve_vectors

#: Bits to the RMS at which weights are best rounded when the passes follow (measured; the authors take 0.9 for all).
RMS = {2: 1.05, 3: 1.03, 4: 1.0}


@dataclass(frozen=True)
class QuIP(Method):
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` over a lattice codebook, in a basis in which no weight and no input stands out.

    `O W Tᵀ` is rounded, `T` and `O` random-signed Hadamard matrices of any size (`models/hadamard.py`): one `T` for all linears
    of an input, one `O` for each linear. The walk decides eight columns at once (block LDLQ), all linears of the input in one;
    then `passes` of coordinate descent lower the objective further. Against the authors' code: a pass never raises the
    objective; each of q, k, v has its own output rotation; statistics are those of this run, with compressed blocks before.

    Attributes:
        bits: 2, 3 or 4.
        damping: λ ≥ 0, added to the diagonal of `H` relative to its mean.
        passes: of coordinate descent, at most.
        rms: to which the rotated weights are scaled before they are rounded; None for what suits the bits. The authors: 0.9.
        rescale: first balance inputs and weights, `W diag(d)` with `d = (H_jj / Σ_i W_ij²)^¼`; `d` is stored.
        tune_block: after the linears of each input are rounded, so many gradient steps on the block's outputs train the
            weights that are still dense, and more as follows (`block_tuning`).
        tune_norms: train the block's norms too, which costs nothing.
        tune_signs: train the signs of the outputs' rotations too, which become real vectors of 16 bits. Those of the inputs are
            left: the norm, or the outputs, that make an input can scale it as well.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "quip"
    summary: ClassVar[str] = "random rotations on both sides, then second-order rounding to the E8 lattice, 2, 3 or 4 bits"
    source: ClassVar[str] = "Tseng et al. 2024 (QuIP#), arXiv:2402.04396, sections 3 and 4"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits},) for bits in (2, 3, 4)}

    bits: int = 2
    damping: float = 0.01
    passes: int = 10
    rms: float | None = None
    rescale: bool = False
    tune_block: int = 0
    tune_norms: bool = True
    tune_signs: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        self.grid()
        limits = {"damping": (self.damping, self.damping >= 0), "passes": (self.passes, self.passes >= 0)}
        limits["tune_block"] = (self.tune_block, self.tune_block >= 0)
        for setting, (found, fits) in limits.items():
            if not fits:
                raise FeatherweightError(f"{setting} is negative", found=found, expected="0 or more")

    def grid(self) -> E8Grid:
        """The grid of these settings."""
        return E8Grid(self.bits, RMS.get(self.bits) if self.rms is None else self.rms)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """A `Lattice` between rotations, and between these and the input a diagonal where `rescale`.

        Raises:
            FeatherweightError: `current` is not dense.
        """
        self._check_dense(str(current["kind"]))
        rows, columns = current["shape"]
        lattice = Lattice.describe((rows, columns), self.bits)
        rotated = Rotated.describe(lattice, describe_rotation(columns), describe_rotation(rows))
        rotated = describe_real_signs(rotated, self.real_sides)
        return Rotated.describe(rotated, describe_map(DIAGONAL, columns, dtype)) if self.rescale else rotated

    @property
    def tunes(self) -> bool:
        """Where the block is tuned."""
        return self.tune_block > 0

    @property
    def tunes_norms(self) -> bool:
        """Where the block is tuned, unless told otherwise."""
        return self.tunes and self.tune_norms

    @property
    def real_sides(self) -> tuple[str, ...]:
        """Whose rotations' signs are stored as real vectors."""
        return ("output",) if self.tunes and self.tune_signs else ()

    def tune(self, run: BlockRun) -> dict[str, Any]:
        """The finished weights of the block's linears, and its norms.

        Raises:
            FeatherweightError: as `compress`; a block that returns no gradients.
        """
        for name, current in run.current.items():
            self._check_dense(current.kind, name)
        return tune_block(run, self._solved, self.tune_block, self.name, sides=self.real_sides, norms=self.tune_norms)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve all linears of the input at once.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; a `current` that is not dense.
        """
        return finished(problem, self._solved, sides=self.real_sides)

    def _solved(self, problem: Problem) -> dict[str, Compressed]:
        for name, current in problem.current.items():
            self._check_dense(current.kind, name)
        names = list(problem.current)
        hessian, count = problem.hessian(self.name, "rtn")
        weights = {name: problem.current[name].dequantize() for name in names}
        factors = input_factors(hessian, torch.cat(list(weights.values())), problem.dtype) if self.rescale else None
        basis = Incoherence.draw({name: len(weight) for name, weight in weights.items()}, hessian, factors, problem.generator)
        rotated = [basis.weight(name, weight) for name, weight in weights.items()]
        factor = factorise(basis.hessian, self.damping, name=" and ".join(names), samples=count)
        solved = solve_vectors(rotated, basis.hessian, factor, self.grid(), self.passes)
        return {
            name: self._store(name, weight, part, basis, factor)
            for name, weight, part in zip(names, rotated, solved, strict=True)
        }

    def _store(self, name: str, rotated: Tensor, solved: VectorSolved, basis: Incoherence, factor: Factor) -> Compressed:
        """One linear; `rotated` is its weight in the basis."""
        inner = Lattice.from_codes(solved.codes, solved.scale, rotated.shape[1], self.bits)
        packed: PackedWeight = Rotated.of(inner, basis.input, basis.outputs[name])
        if basis.factors is not None:
            packed = Rotated.of(packed, basis.factors, dtype=basis.factors.values.dtype)
        energy = float(factor.row_energy(rotated).sum())
        error = float(factor.row_energy(rotated - inner.dequantize()).sum())
        walk, last = solved.objectives[0], solved.objectives[-1]
        return Compressed(
            packed,
            {
                "solver": "sweep",
                "relative_error": error / energy if energy > 0 else 0.0,
                "passes": len(solved.objectives) - 1,
                "passes_gain": 1 - last / walk if walk > 0 else 0.0,
                "input_rotation": basis.input.construction.name if basis.input else "none",
                "output_rotation": made.construction.name if (made := basis.outputs[name]) else "none",
                "damping": factor.damping_used,
            },
        )

    def _check_dense(self, kind: str, name: str = "") -> None:
        if kind != "dense":
            masked = kind == "masked"
            raise FeatherweightError(
                f"quip starts from dense weights{' in ' + name if name else ''}",
                found="a step before dropped weights, and a rotation would bring all of them back" if masked
                else f"a step before stored them as {kind}",
                expected="dense",
                fix="use method: gptq after pruning, its levels hold 0" if masked else "make quip the first step",
            )  # fmt: skip
