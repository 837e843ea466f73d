"""What a product of one token can take along of what is around it in a decode step; `source/around.cuh` does it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scaled:
    """A row times the gain of the norm that it goes through, in two halves: the divisor is still to come.

    Attributes:
        x: `[1, in]`, the row times the gain.
        squares: parts of the sum of the row's squares, float32.
        eps: of the norm.
    """

    x: Tensor
    squares: Tensor
    eps: float


@dataclass(frozen=True)
class Around:
    """Every part may be left out.

    Attributes:
        scaled: what is multiplied, where a norm comes before the product.
        activation: "silu" or "gelu_tanh", of the first half of the weight's rows, which the second half multiplies.
        residual: `[1, out]`, added to the outputs; may be where they are written.
        gain: `[out]` float32, of the norm that follows.
        following: where outputs times gain, and the parts of the sum of their squares, are written: one part for each
            block of the launch.
    """

    scaled: Scaled | None = None
    activation: str | None = None
    residual: Tensor | None = None
    gain: Tensor | None = None
    following: Scaled | None = None


class AroundArguments(ctypes.Structure):
    """The same as the kernel takes it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("squares", "residual", "gain", "scaled", "squares_out")),
        ("parts", ctypes.c_int),
        *((name, ctypes.c_float) for name in ("inputs", "eps")),
    )

    @classmethod
    def of(cls, around: Around) -> AroundArguments:
        """Addresses and numbers."""
        before, after = around.scaled, around.following
        tensors = (
            None if before is None else before.squares, around.residual, around.gain, None if after is None else after.x,
            None if after is None else after.squares,
        )  # fmt: skip
        numbers = (0, 0.0, 0.0) if before is None else (before.squares.numel(), before.x.shape[1], before.eps)
        return cls(*(0 if tensor is None else tensor.data_ptr() for tensor in tensors), *numbers)
