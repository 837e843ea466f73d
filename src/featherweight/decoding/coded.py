"""Integer codes times one row, by the CUDA kernel that takes norms and sums along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.decoding.products import Norm
from featherweight.kernels.cuda.around import Around, Scaled
from featherweight.kernels.cuda.multiply import DeviceCodes, Shape, blocks_of, multiply


@dataclass(frozen=True)
class CodedRow:
    """As `products.Product`; half of each norm is done where its row is written, the other half where it is read."""

    weight: DeviceCodes
    bias: Tensor | None
    shape: Shape
    norms: bool = False
    scales: bool = True
    adds: bool = True

    @property
    def outputs(self) -> int:
        """Out features."""
        return self.weight.rows

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        row = x.x if isinstance(x, Scaled) else x
        around = Around(scaled=x if isinstance(x, Scaled) else None)
        return multiply(row, self.weight, self.bias, row.new_empty(1, self.outputs), self.shape, around=around)

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> Scaled | None:
        """As `Product`."""
        scaled = None
        if following is not None:
            parts = torch.empty(blocks_of(self.outputs, self.shape), dtype=torch.float32, device=x.device)
            scaled = Scaled(torch.empty_like(residual), parts, following.eps)
        around = Around(residual=residual, gain=None if following is None else following.gain, following=scaled)
        multiply(x, self.weight, self.bias, residual, self.shape, around=around)
        return scaled
