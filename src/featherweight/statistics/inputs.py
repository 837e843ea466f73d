"""Additive sums over the input of one axis: what the methods know about the activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.axis import ORTHOGONAL
from featherweight.models.transforms import Diagonal, Transform
from featherweight.statistics.halves import mirror_

KINDS = frozenset({"sum_sq", "hessian", "abs_max", "samples"})

#: Tokens of every window whose inputs are kept as "samples", evenly spaced.
POSITIONS = 64


@dataclass(frozen=True)
class InputStatistics:
    """Sums over `count` tokens of an axis's input `x`; `a + b` merges batches, shards and ranks.

    Attributes:
        count: tokens seen.
        sum_sq: `Σ x²`, `[in]`.
        hessian: `Σ x xᵀ`, `[in, in]`.
        abs_max: `max |x|`, `[in]`; merges by maximum.
        samples: inputs at evenly spaced tokens of every window, `[windows, positions, in]`; merge one after the other.
    """

    count: int
    sum_sq: Tensor | None = None
    hessian: Tensor | None = None
    abs_max: Tensor | None = None
    samples: Tensor | None = None

    @classmethod
    def from_inputs(cls, x: Tensor, needs: frozenset[str], dtype: torch.dtype = torch.float32) -> InputStatistics:
        """Statistics of `x [..., in]`, accumulated in `dtype`.

        Raises:
            FeatherweightError: unknown statistic asked for, or NaN/Inf activations.
        """
        if needs - KINDS:
            raise FeatherweightError(
                "unknown statistic", found=", ".join(sorted(needs - KINDS)), expected=", ".join(sorted(KINDS))
            )
        samples = _sampled(x.detach()).to(dtype) if "samples" in needs else None
        x = x.detach().reshape(-1, x.shape[-1]).to(dtype)
        hessian = x.T @ x if "hessian" in needs else None
        sum_sq = hessian.diagonal().clone() if hessian is not None else (x * x).sum(0)
        if not bool(torch.isfinite(sum_sq).all()):
            bad = int((~torch.isfinite(sum_sq)).sum())
            raise FeatherweightError(
                "activations are not finite",
                found=f"{bad} of {x.shape[-1]} input features hold NaN or Inf",
                expected="finite activations",
                fix="run in float32 or bfloat16; check the checkpoint and the calibration tokens",
            )
        abs_max = x.abs().amax(0) if "abs_max" in needs else None
        return cls(x.shape[0], sum_sq if needs else None, hessian, abs_max, samples)

    def __add__(self, other: InputStatistics) -> InputStatistics:
        def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        maximum = None if self.abs_max is None or other.abs_max is None else torch.maximum(self.abs_max, other.abs_max)
        samples = None if self.samples is None or other.samples is None else torch.cat((self.samples, other.samples))
        return InputStatistics(
            self.count + other.count, added(self.sum_sq, other.sum_sq), added(self.hessian, other.hessian), maximum, samples
        )

    def mean_hessian(self) -> Tensor:
        """`E[x xᵀ]`, `[in, in]`."""
        return self._divided("hessian", self.hessian)

    def mean_sum_sq(self) -> Tensor:
        """`E[x²]`, `[in]`."""
        return self._divided("sum_sq", self.sum_sq)

    def take(self, inputs: Tensor) -> InputStatistics:
        """Those of some inputs, `[chosen]` int64."""

        def chosen(sums: Tensor | None) -> Tensor | None:
            return None if sums is None else sums[inputs.to(sums.device)]

        hessian = chosen(self.hessian)
        hessian = None if hessian is None else hessian[:, inputs.to(hessian.device)]
        samples = None if self.samples is None else self.samples[..., inputs.to(self.samples.device)]
        return InputStatistics(self.count, chosen(self.sum_sq), hessian, chosen(self.abs_max), samples)

    def symmetric(self) -> InputStatistics:
        """The same, its Hessian made symmetric to the last bit in place, as a product need not be."""
        return self if self.hessian is None else replace(self, hessian=mirror_(self.hessian))

    def transformed(self, transform: Transform) -> InputStatistics:
        """Those of `T x`: exact, but that of a map that mixes inputs `sum_sq` needs the Hessian, and `abs_max` is not known."""

        def along(sums: Tensor | None, map_: Transform) -> Tensor | None:
            return None if sums is None else map_.apply(sums)

        once = along(self.hessian, transform)
        hessian = None if once is None else transform.apply(once.t())
        samples = along(self.samples, transform)
        if transform.kind == ORTHOGONAL:
            return InputStatistics(self.count, None if hessian is None else hessian.diagonal().clone(), hessian, None, samples)
        squared = Diagonal(transform.values.square()) if isinstance(transform, Diagonal) else transform
        return InputStatistics(self.count, along(self.sum_sq, squared), hessian, along(self.abs_max, transform), samples)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file."""
        named = {"sum_sq": self.sum_sq, "hessian": self.hessian, "abs_max": self.abs_max, "samples": self.samples}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, count: int, tensors: Mapping[str, Tensor]) -> InputStatistics:
        """The inverse of `tensors`."""
        return cls(count, **{name: tensors.get(name) for name in sorted(KINDS)})

    def provides(self, needs: frozenset[str]) -> bool:
        """Whether every statistic of `needs` is here."""
        return needs <= self.tensors().keys()

    def _divided(self, name: str, total: Tensor | None) -> Tensor:
        if total is None or self.count == 0:
            raise FeatherweightError(
                f"the {name} was not gathered",
                found=f"{self.count} tokens, {', '.join(self.tensors()) or 'no statistics'}",
                expected=f"a method that declares '{name}' in its needs, and at least one token",
            )
        return total / self.count


def _sampled(x: Tensor) -> Tensor:
    """`x [..., tokens, in]` at up to `POSITIONS` evenly spaced tokens, `[windows, positions, in]`."""
    windows = x.reshape(-1, *x.shape[-2:])
    positions = torch.linspace(0, windows.shape[1] - 1, min(POSITIONS, windows.shape[1]), device=x.device).round().long()
    return windows[:, positions]
