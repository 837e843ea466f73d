"""A basis in which no weight and no input stands out: random-signed Hadamard rotations of both sides of a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.models.axis import ORTHOGONAL
from featherweight.models.hadamard import construct
from featherweight.models.transforms import Diagonal, Hadamard
from featherweight.packed.maps import describe_map

#: Sides whose rotation would have a larger factor than this (a large prime) are left alone: it would cost as much as the weight.
LARGEST_FACTOR = 2048

#: Powers of two between which the factors of a balanced input stay, around their geometric mean.
LARGEST_EXPONENT = 8.0

#: Below this part of the largest, energies count as this part.
SMALLEST_ENERGY = 1e-8


@dataclass(frozen=True)
class Incoherence:
    """The basis of the linears of one input: `O W diag(d) Tᵀ`, for inputs `T diag(1/d) x`.

    Attributes:
        hessian: of the inputs there, `[in, in]` float32.
        input: `T`; None where it is left alone.
        outputs: `O` by linear, likewise.
        factors: `diag(1/d)`, in the dtype it is stored in; None without balancing.
    """

    hessian: Tensor
    input: Hadamard | None
    outputs: Mapping[str, Hadamard | None]
    factors: Diagonal | None = None

    @classmethod
    def draw(
        cls,
        rows: Mapping[str, int],
        hessian: Tensor,
        factors: Diagonal | None,
        generator: Callable[[str], torch.Generator],
    ) -> Incoherence:
        """A random one.

        Args:
            rows: outputs by linear.
            hessian: `[in, in]`.
            factors: of the inputs, as stored.
            generator: by name; asked for one of each linear, and for one of the input, named after the first linear.
        """
        rotated = hessian.to(torch.float64)
        if factors is not None:
            rotated = factors.apply(factors.apply(rotated).t())
        before = _draw(len(hessian), generator(f"{next(iter(rows))}.input"))
        if before is not None:
            rotated = before.apply(before.apply(rotated).t())
        outputs = {name: _draw(count, generator(name)) for name, count in rows.items()}
        return cls(rotated.to(torch.float32), before, outputs, factors)

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """`weight [out, in]` of the linear `name` in this basis, float32."""
        after, values = self.outputs[name], weight
        if self.factors is not None:
            values = self.factors.contragredient().apply(values)
        values = values if self.input is None else self.input.apply(values)
        return values if after is None else after.apply(values.t()).t().contiguous()


def describe_rotation(size: int) -> dict[str, Any] | None:
    """Description of the rotation that `Incoherence.draw` makes of a side of `size`; None where it leaves it alone."""
    return describe_map(ORTHOGONAL, size, torch.float32) if _is_cheap(size) else None


def input_factors(hessian: Tensor, weight: Tensor, dtype: torch.dtype) -> Diagonal:
    """`diag(1/d)`, `d_j = (H_jj / Σ_i W_ij²)^¼` (QuIP, Chee et al. 2023, section 5), around a geometric mean of 1, rounded to `dtype`.

    Args:
        hessian: `[in, in]`.
        weight: all linears of the input, `[rows, in]`.
        dtype: in which the factors are stored.
    """

    def floored(energies: Tensor) -> Tensor:
        energies = energies.to(torch.float64)
        return energies.clamp(min=float(energies.max()) * SMALLEST_ENERGY + torch.finfo(torch.float32).tiny)

    exponents = (floored(weight.square().sum(0)) / floored(hessian.diagonal())).log2() / 4
    exponents = (exponents - exponents.mean()).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return Diagonal(exponents.exp2().to(dtype))


def _is_cheap(size: int) -> bool:
    return max((factor for _, factor in construct(size).factors), default=1) <= LARGEST_FACTOR


def _draw(size: int, generator: torch.Generator) -> Hadamard | None:
    if not _is_cheap(size):
        return None
    return Hadamard(1.0 - 2.0 * torch.randint(0, 2, (size,), generator=generator).to(torch.float32), size)
