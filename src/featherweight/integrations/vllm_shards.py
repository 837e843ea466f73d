"""One rank's part of a weight: what it can cut out stays cut, of the rest it keeps the whole and uses its part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.packed.base import PackedWeight
from featherweight.packed.linear import PackedLinear


class Shard(nn.Module):  # type: ignore[misc]
    """Some outputs and some inputs of a linear.

    Args:
        weight: the whole weight, `[out, in]`.
        outputs: those of this rank.
        inputs: those whose values this rank gets; the products of all ranks are summed.
        dtype: of the activations.
    """

    def __init__(self, weight: PackedWeight, outputs: slice, inputs: slice, dtype: torch.dtype) -> None:
        super().__init__()
        self._outputs, self._inputs, self._width = (
            _left(outputs, weight.shape[0]),
            _left(inputs, weight.shape[1]),
            weight.shape[1],
        )
        if self._inputs is not None and not weight.is_linear:  # each rank rounds its own inputs, as one rank would not
            weight, self._inputs = weight.take(inputs=inputs), None
        if self._outputs is not None:
            weight, self._outputs = _cut(weight, outputs=outputs)
        if self._inputs is not None:
            weight, self._inputs = _cut(weight, inputs=inputs)
        self.linear = PackedLinear(weight, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in of this rank]` to `[..., out of this rank]`."""
        if self._inputs is not None:
            behind = self._width - self._inputs.stop
            x = nn.functional.pad(x, (self._inputs.start, behind))
        y = self.linear(x)
        return y if self._outputs is None else y[..., self._outputs]


def _left(part: slice, size: int) -> slice | None:
    return None if (part.start or 0, part.stop) == (0, size) else part


def _cut(weight: PackedWeight, outputs: slice | None = None, inputs: slice | None = None) -> tuple[PackedWeight, slice | None]:
    """The cut weight and None; where the storage cannot be cut so, the whole and what is still to be cut."""
    try:
        return weight.take(outputs, inputs), None
    except FeatherweightError:
        return weight, outputs if outputs is not None else inputs
