"""Integer codes times one row, by the CUDA kernel, which takes a gate along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from featherweight.decoding.products import Norm
from featherweight.kernels.cuda.choices import choose_shape
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import ROWS
from featherweight.kernels.cuda.multiply import Shape, multiply
from featherweight.packed.stacking import join_rows


@dataclass(frozen=True)
class CodedRow:
    """As `products.Product`.

    Attributes:
        shape: how the work is cut.
        gated: the same with an activation; two tiles to a warp.
    """

    weight: DeviceCodes
    bias: Tensor | None
    shape: Shape
    gated: Shape
    norms: bool = False
    gates: bool = True
    adds: bool = False

    @classmethod
    def of(cls, weight: DeviceCodes, bias: Tensor | None) -> CodedRow:
        """With a cut for its sizes."""
        count = processors(weight.codes.device)
        return cls(
            weight, bias, choose_shape(weight, 1, count), gated_shape(weight.inputs, count),
            gates=weight.bits < 8 and weight.rows % (2 * ROWS) == 0,
        )  # fmt: skip

    @property
    def outputs(self) -> int:
        """Out features."""
        return self.weight.rows

    def __call__(self, x: Tensor, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        shape, outputs = (self.shape, self.outputs) if activation is None else (self.gated, self.outputs // 2)
        return multiply(x, self.weight, self.bias, x.new_empty(1, outputs), shape, activation=activation)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Not offered: a kernel for sum and norm together is faster than a product that waits for what it adds to."""
        raise NotImplementedError


def gated_shape(inputs: int, processors: int) -> Shape:
    """Units of 256 inputs go around evenly to eight warps, or to four of twice as many blocks."""
    units = -(-inputs // 256)
    warps = 8 if units % 8 == 0 else 4
    return Shape(256, 2, 1, min(warps, units), 16 // warps, 1, 16 // warps * processors)


def join(weights: Sequence[DeviceCodes]) -> tuple[DeviceCodes, list[DeviceCodes]] | None:
    """One weight with the rows of all, and each of these as its part; None where they are coded differently, or not in whole tiles."""
    first = weights[0]
    alike = {(each.inputs, each.bits, each.group, each.scales.dtype, each.zeros is None) for each in weights}
    if len(alike) > 1 or any(each.rows % ROWS for each in weights):
        return None
    zeros = [each.zeros for each in weights if each.zeros is not None]
    whole = replace(
        first, rows=sum(each.rows for each in weights), codes=join_rows([each.codes for each in weights]),
        scales=join_rows([each.scales for each in weights]), zeros=join_rows(zeros) if zeros else None,
    )  # fmt: skip
    parts, begin = [], 0
    for each in weights:
        tiles = slice(begin, begin + each.rows // ROWS)
        points = None if whole.zeros is None else whole.zeros[tiles]
        parts.append(replace(each, codes=whole.codes[tiles], scales=whole.scales[tiles], zeros=points))
        begin = tiles.stop
    return whole, parts
