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
from featherweight.statistics.products import add_product_

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
        routed: tokens that a router sends this way, where the sums are of all tokens instead; None where they are of those
            that come.
    """

    count: int
    sum_sq: Tensor | None = None
    hessian: Tensor | None = None
    abs_max: Tensor | None = None
    samples: Tensor | None = None
    routed: int | None = None

    @classmethod
    def from_inputs(cls, x: Tensor, needs: frozenset[str], dtype: torch.dtype = torch.float32) -> InputStatistics:
        """Statistics of `x [..., in]`, accumulated in `dtype`.

        Raises:
            FeatherweightError: unknown statistic asked for, or NaN/Inf activations.
        """
        return cls.zeros(x.shape[-1], needs, dtype, x.device).add_(x).finished()

    @classmethod
    def zeros(cls, width: int, needs: frozenset[str], dtype: torch.dtype, device: torch.device) -> InputStatistics:
        """Those of no token yet, to be added up in `dtype`.

        Raises:
            FeatherweightError: unknown statistic asked for.
        """
        if needs - KINDS:
            raise FeatherweightError(
                "unknown statistic", found=", ".join(sorted(needs - KINDS)), expected=", ".join(sorted(KINDS))
            )
        shapes = {"sum_sq": (width,), "hessian": (width, width), "abs_max": (width,), "samples": (0, 0, width)}
        kinds = needs | {"sum_sq"} if needs else needs
        return cls(0, **{kind: torch.zeros(shapes[kind], dtype=dtype, device=device) for kind in sorted(kinds)})

    def add_(self, x: Tensor) -> InputStatistics:
        """These and those of `x [..., in]`, added up in place: half a Hessian, and nothing checked, until `finished`."""
        x = x.detach()
        samples = self.samples
        if samples is not None:
            sampled = _sampled(x).to(samples.dtype)
            samples = torch.cat((samples, sampled)) if len(samples) else sampled
        x = x.reshape(-1, x.shape[-1])
        if self.hessian is not None:
            add_product_(self.hessian, x)
        elif self.sum_sq is not None:
            self.sum_sq.add_(x.to(self.sum_sq.dtype).square().sum(0))
        if self.abs_max is not None:
            torch.maximum(self.abs_max, x.abs().amax(0).to(self.abs_max.dtype), out=self.abs_max)
        return replace(self, count=self.count + len(x), samples=samples)

    def finished(self) -> InputStatistics:
        """The same, whole and checked: the Hessian symmetric to the last bit, `sum_sq` its diagonal.

        Raises:
            FeatherweightError: NaN or Inf activations.
        """
        hessian = None if self.hessian is None else mirror_(self.hessian)
        sum_sq = self.sum_sq if hessian is None else hessian.diagonal().clone()
        if sum_sq is not None and not bool(torch.isfinite(sum_sq).all()):
            bad = int((~torch.isfinite(sum_sq)).sum())
            raise FeatherweightError(
                "activations are not finite",
                found=f"{bad} of {len(sum_sq)} input features hold NaN or Inf",
                expected="finite activations",
                fix="run in float32 or bfloat16; check the checkpoint and the calibration tokens",
            )
        return replace(self, hessian=hessian, sum_sq=sum_sq)

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
    """`x [..., tokens, in]` at up to `POSITIONS` evenly spaced tokens, `[windows, positions, in]`.

    Tokens without windows (those that an expert sees) count as one, at always as many positions, if need be repeated.
    """
    windows = x.reshape(-1, *x.shape[-2:])
    count = POSITIONS if x.ndim == 2 else min(POSITIONS, windows.shape[1])
    positions = torch.linspace(0, windows.shape[1] - 1, count, device=x.device).round().long()
    return windows[:, positions]
