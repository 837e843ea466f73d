"""Structured pruning of single linears: whole inputs or whole outputs go, and the multiplication shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.grouped import Grouped
from featherweight.packed.sliced import Sliced
from featherweight.solvers.refit import absorb_dropped

#: Storages that can lose inputs and outputs one by one.
SLICEABLE = ("dense", "integer", "floating")


@dataclass(frozen=True)
class Structured(Method):
    """Drop the inputs, or the outputs, of smallest L1 norm; what is left is stored and multiplied as a smaller weight.

    A dropped output still receives its bias, as with a row of zeros. On integers codes and scales of what is left stay
    bit for bit, so that the result equals the masked weight exactly. Later steps see the part that is left.

    Attributes:
        ratio: fraction dropped, `⌊n · ratio⌋` of n inputs or outputs.
        dimension: "input" or "output".
        score: "l1", `Σ |w|`; or "activation", `Σ |w_ij| √E[x_j²]`, which sees inputs that are large with small weights.
        repair: let the kept inputs make up for the dropped ones, `W H_·K (H_KK)⁻¹` (least squares); dense weights only.
        damping: λ of that repair, relative to the mean diagonal of `H_KK`.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "structured"
    summary: ClassVar[str] = "drop whole inputs or outputs of a linear, so that its multiplication shrinks"
    source: ClassVar[str] = "L1 structured pruning (Li et al. 2017, arXiv:1608.08710) of single linears, as FastLlama has it"

    points: ClassVar[Mapping[str, Steps]] = {
        f"{round(100 * ratio)}-{bits}bit": (
            {"ratio": ratio, "score": "activation", "repair": True},
            {"method": "gptq", "bits": bits, "group_size": 128, "order": "static"},
        )
        for ratio, bits in ((0.25, 4), (0.1, 4), (0.1, 8))
    }

    ratio: float = 0.1
    dimension: Literal["input", "output"] = "input"
    score: Literal["l1", "activation"] = "l1"
    repair: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.ratio < 1:
            raise FeatherweightError(
                "this ratio would empty every layer",
                found=self.ratio,
                expected="at least 0, less than 1",
                fix="use ratio: 0.1 to drop a tenth",
            )
        for setting, allowed in (("dimension", ("input", "output")), ("score", ("l1", "activation"))):
            if getattr(self, setting) not in allowed:
                raise FeatherweightError(
                    f"unknown {setting}", found=getattr(self, setting), expected=", ".join(allowed), fix=f"use {allowed[0]}"
                )
        if self.repair and self.dimension == "output":
            raise FeatherweightError(
                "outputs have nothing to make up for a dropped one",
                found="repair with dimension: output",
                expected="repair with dimension: input",
                fix="leave repair out",
            )

    @property
    def requires(self) -> frozenset[str]:
        """Statistics only for a score of activations or a repair."""
        return frozenset({"hessian"} if self.repair else {"sum_sq"} if self.score == "activation" else ())

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """A smaller `current` and the indices of what is left.

        Raises:
            FeatherweightError: a storage that cannot lose single inputs, or a repair of what is rounded already.
        """
        if current["kind"] not in SLICEABLE or (self.repair and current["kind"] != "dense"):
            raise FeatherweightError(
                "this storage cannot be sliced"
                if current["kind"] not in SLICEABLE
                else "a repair moves weights off their grid",
                found=f"weights stored as {current['kind']}",
                expected="dense" if self.repair else ", ".join(SLICEABLE),
                fix="make structured the first step",
            )
        side = 0 if self.dimension == "output" else 1
        shape = list(current["shape"])
        shape[side] -= int(shape[side] * self.ratio)
        inner = {**current, "shape": shape}
        if side == 1 and current.get("group_size") is not None and shape != current["shape"]:
            inner["group_index"] = True
        return Sliced.describe((current["shape"][0], current["shape"][1]), inner)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Slice every linear by its own scores.

        Raises:
            FeatherweightError: no statistics where they are needed; what `storage` refuses.
        """
        compressed = {}
        for name, current in problem.current.items():
            self.storage(current.description(), problem.dtype)
            side = 0 if self.dimension == "output" else 1
            values = current.dequantize()
            scores = self._scores(values, problem)
            left = scores.numel() - int(scores.numel() * self.ratio)
            kept = scores.argsort(descending=True, stable=True)[:left].sort().values
            facts = {"kept": left, "kept_l1": float(scores[kept].sum() / scores.sum().clamp(min=1e-30))}
            if self.repair:
                inner: PackedWeight = Dense(self._repaired(values, kept, problem, name).to(problem.dtype))
            else:
                whole = current.indexed() if isinstance(current, Grouped) and side == 1 and left < current.shape[1] else current
                inner = whole.take(kept, None) if side == 0 else whole.take(None, kept)
            placed = (None, kept) if side == 0 else (kept, None)
            compressed[name] = Compressed(Sliced.of(inner, current.shape, *placed), facts)
        return compressed

    def _scores(self, values: Tensor, problem: Problem) -> Tensor:
        """One score per output or input."""
        weighed = values.abs()
        if self.score == "activation":
            if problem.statistics is None:
                problem.hessian(self.name, "structured with score: l1")  # says what is missing
            assert problem.statistics is not None
            weighed = weighed * problem.statistics.mean_sum_sq().to(values.device, torch.float32).sqrt()
        return weighed.sum(1 if self.dimension == "output" else 0)

    def _repaired(self, values: Tensor, kept: Tensor, problem: Problem, name: str) -> Tensor:
        """`W H_·K (H_KK)⁻¹`, `[out, kept]`."""
        hessian, count = problem.hessian(self.name, "structured without repair")
        return absorb_dropped(values, kept, hessian, self.damping, name=name, samples=count)
