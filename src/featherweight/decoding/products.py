"""What a decode step multiplies by, and what of its neighbours a product takes along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featherweight.kernels.cuda.around import Scaled


@dataclass(frozen=True)
class Norm:
    """An RMS norm.

    Attributes:
        gain: `[features]` float32.
        eps: added to the mean square.
    """

    gain: Tensor
    eps: float


class Product(Protocol):
    """`x [batch, in] → [batch, out]`, and what of its neighbours it takes along."""

    @property
    def outputs(self) -> int:
        """Out features."""

    @property
    def norms(self) -> bool:
        """Whether it takes the norm of its input along."""

    @property
    def gates(self) -> bool:
        """Whether it takes along the activation of half its outputs, times the others."""

    @property
    def scales(self) -> bool:
        """Whether it takes a `Scaled` row in the place of a normed one."""

    @property
    def adds(self) -> bool:
        """Whether it can `add`."""

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """The product; with an activation, half as many outputs."""

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> Scaled | None:
        """`residual += product(x)`, in place; scaled for the norm that follows where it can."""


@dataclass(frozen=True)
class DenseRow:
    """A dense weight times one row, with all that is around it, in one kernel."""

    weight: Tensor
    bias: Tensor | None
    run: Callable[..., Tensor]
    norms: bool = True
    gates: bool = True
    scales: bool = False
    adds: bool = True

    @property
    def outputs(self) -> int:
        """Out features."""
        return self.weight.shape[0]

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        assert isinstance(x, Tensor)
        out = x.new_empty(1, self.outputs // (1 if activation is None else 2))
        gain, eps = (None, 0.0) if norm is None else (norm.gain, norm.eps)
        return self.run(x, self.weight, out, gain=gain, eps=eps, bias=self.bias, activation=activation)

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> None:
        """As `Product`."""
        self.run(x, self.weight, residual, bias=self.bias, residual=residual)


@dataclass(frozen=True)
class Separate:
    """Any weights, one product each, and nothing taken along."""

    products: Sequence[Callable[[Tensor], Tensor]]
    outputs: int
    bias: Tensor | None
    norms: bool = False
    gates: bool = False
    scales: bool = False
    adds: bool = False

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        assert isinstance(x, Tensor)
        parts = [product(x) for product in self.products]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> None:
        """Not offered."""
        raise NotImplementedError
