"""How a decode step multiplies by the linears that share one input: as one product where their weights stack by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from featherweight.kernels import registry
from featherweight.kernels.cuda.around import Scaled
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedModule, TiedPackedLinear
from featherweight.packed.lower import lower
from featherweight.packed.stacking import stack


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
        """Whether it takes the norm of its input and the activation of half its outputs along."""

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


def make_product(modules: Sequence[nn.Module], batch: int) -> Product:
    """The product of linears that share their input, outputs one after another.

    Weights that stack are stored stacked from here on, and the modules hold views of them: nothing is stored twice.
    """
    outputs = [int(module.weight.shape[0]) for module in modules]
    bias = _biases(modules, outputs)
    weights = [_weight(module) for module in modules]
    stacked = stack(weights) if len(weights) > 1 else weights[0]
    if stacked is None:
        return Separate([_lowered(weight) for weight in weights], sum(outputs), bias)
    if len(weights) > 1:
        _rehouse(modules, stacked.tensors())
    device = next(iter(stacked.tensors().values())).device
    if isinstance(stacked, Dense):
        signature = {"rows": batch, "dtype": str(stacked.values.dtype).removeprefix("torch.")}
        if batch == 1:
            return DenseRow(stacked.values, bias, registry.choose("row_product", signature, device))
        return Separate([lambda x: nn.functional.linear(x, stacked.values)], sum(outputs), bias)
    return Separate([_lowered(stacked)], sum(outputs), bias)


def _weight(module: nn.Module) -> PackedWeight:
    return module.packed if isinstance(module, PackedModule | TiedPackedLinear) else Dense(module.weight.data)


def _lowered(weight: PackedWeight) -> Callable[[Tensor], Tensor]:
    return lower(weight, next(iter(weight.tensors().values())).device)


def _biases(modules: Sequence[nn.Module], outputs: Sequence[int]) -> Tensor | None:
    biases = [getattr(module, "bias", None) for module in modules]
    known = next((bias for bias in biases if bias is not None), None)
    if known is None:
        return None
    return torch.cat(
        [known.new_zeros(count) if bias is None else bias.data for bias, count in zip(biases, outputs, strict=True)]
    )


def _rehouse(modules: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    """Make every module's tensors views of its rows of the stacked ones."""
    first = 0
    for module in modules:
        packed = isinstance(module, PackedModule)
        rows = int(module.weight.shape[0])
        for name, tensor in stacked.items():
            part = tensor[first : first + rows]
            if packed:
                module._buffers[name] = part
            else:
                module.weight.data = part
        first += rows
