"""Low-bit integers: a scale and a minimum for every few neighbouring values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.bits import packed_width, unpack_across
from featherweight.kernels.reference.integer_encode import grouped
from featherweight.kernels.registry import choose
from featherweight.kv_cache.codec import CacheCodec, Codes, Constants

Axis = Literal["token", "channel"]


@dataclass(frozen=True)
class Integer(CacheCodec):
    """`x̂ = s q + min`, `q = clamp(round((x − min) / s), 0, 2^bits − 1)`, `s = (max − min) / (2^bits − 1)` over a group.

    Scale and minimum are rounded to the model's dtype before `q` is found. A group of equal values comes back exactly.

    Attributes:
        bits: of a code, 2 to 8.
        axis: what shares a scale. "token": neighbouring channels of one token, the last group may be smaller (values).
            "channel": one channel of neighbouring tokens (keys, whose outliers stay in few channels).
        group_size: channels, or tokens, that share a scale.
        window: newest tokens that stay exact. Along tokens it slides, token by token; along channels tokens settle
            `window` at a time, so fewer than that are exact. A multiple of `group_size` then.

    Raises:
        FeatherweightError: a setting outside these ranges.
    """

    name: ClassVar[str] = "integer"
    summary: ClassVar[str] = "low-bit integers, a scale and a minimum per group: keys by channel, values by token"
    source: ClassVar[str] = "KIVI, Liu et al. 2024, arXiv:2402.02750, section 3"

    bits: int = 2
    axis: Axis = "token"
    group_size: int = 32
    window: int = 128

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.bits not in range(2, 9):
            raise FeatherweightError("integer cannot store these bits", found=self.bits, expected="2 to 8", fix="use bits: 4")
        if self.axis not in get_args(Axis):
            raise FeatherweightError(
                "unknown axis of the groups", found=self.axis, expected=", ".join(get_args(Axis)),
                fix="channel for keys, token for values",
            )  # fmt: skip
        if self.group_size < 1 or self.window < 0:
            raise FeatherweightError(
                "a group and a window cannot be so small", found=f"group_size: {self.group_size}, window: {self.window}",
                expected="group_size 1 or more, window 0 or more",
            )  # fmt: skip
        if self.axis == "channel":
            check_chunks(self.window, self.group_size)

    @property
    def group(self) -> int:
        """Tokens that share scales."""
        return self.group_size if self.axis == "channel" else 1

    def settled(self, total: int) -> int:
        """All but the newest `window`; along channels whole windows."""
        return total - total % self.window if self.axis == "channel" else max(0, total - self.window)

    def check(self, head_dim: int) -> None:
        """Codes of a token fill whole bytes at any number of bits."""
        if head_dim % 8:
            raise FeatherweightError("integer needs heads of eights", found=f"head_dim {head_dim}", expected="a multiple of 8")

    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """Codes of a token as `pack_across` packs them; scale and minimum of a group."""
        scales = head_dim if self.axis == "channel" else -(-head_dim // self.group_size)
        return {
            "codes": (1, (packed_width(head_dim, self.bits),), torch.uint8),
            "scale": (self.group, (scales,), dtype),
            "minimum": (self.group, (scales,), dtype),
        }

    def encode(self, exact: Tensor, constants: Constants) -> dict[str, Tensor]:
        """See `CacheCodec.encode`; arithmetic in float32."""
        signature = {"bits": self.bits, "axis": self.axis, "group_size": self.group_size, "head_dim": exact.shape[-1]}
        signature["dtype"] = str(exact.dtype).removeprefix("torch.")
        made: dict[str, Tensor] = choose("integer_encode", signature, exact.device)(
            exact, self.bits, self.axis, self.group_size
        )
        return made

    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """See `CacheCodec.decode`; arithmetic in float32."""
        head_dim = codes["codes"].shape[-1] * 8 // self.bits
        values = grouped(unpack_across(codes["codes"], self.bits, head_dim), self.axis, self.group_size)
        scale, low = (codes[name].to(torch.float32).unsqueeze(self._along) for name in ("scale", "minimum"))
        values = values.mul_(scale).add_(low)
        return (values.flatten(-3, -2) if self.axis == "channel" else values.flatten(-2)[..., :head_dim]).to(dtype)

    @property
    def _along(self) -> int:
        """Dimension of `grouped` that shares a scale."""
        return -2 if self.axis == "channel" else -1


def check_chunks(window: int, group_size: int) -> None:
    """Raise the error of a window that is not whole groups of tokens."""
    if window < group_size or window % group_size:
        raise FeatherweightError(
            "tokens settle a window at a time, in whole groups", found=f"window: {window}",
            expected=f"a multiple of {group_size}", fix=f"use window: {max(1, round(window / group_size)) * group_size}",
        )  # fmt: skip
