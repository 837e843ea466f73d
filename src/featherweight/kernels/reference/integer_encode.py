"""Low-bit integers of a cache, a scale and a minimum for every few neighbouring values, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.bits import pack_across


def integer_encode(exact: Tensor, bits: int, axis: str, group: int) -> dict[str, Tensor]:
    """`q = clamp(round((x − min) / s), 0, 2^bits − 1)`, `s = (max − min) / (2^bits − 1)` over a group; arithmetic in float32.

    Args:
        exact: `[batch, heads, tokens, head_dim]`; along channels in whole groups.
        bits: of a code.
        axis: what shares a scale: neighbouring channels of a "token", the last group may be smaller, or tokens of a "channel".
        group: how many share one.

    Returns:
        `codes` as `pack_across` packs a token's; `scale`, `minimum` in the dtype of `exact`, rounded to it before codes are found.
    """
    along, largest, numbers = -2 if axis == "channel" else -1, 2**bits - 1, torch.finfo(exact.dtype)
    values = grouped(exact, axis, group)
    low = values.amin(along, keepdim=True)
    least = numbers.smallest_normal * (numbers.eps if exact.dtype == torch.float16 else 1.0)  # float16 keeps its subnormals
    scale = ((values.amax(along, keepdim=True) - low) / largest).clamp(least, numbers.max).to(exact.dtype)
    codes = ((values - low) / scale.to(torch.float32)).round_().clamp_(0, largest).to(torch.uint8)
    tokens = codes.flatten(-3, -2) if axis == "channel" else codes.flatten(-2)[..., : exact.shape[-1]]
    return {
        "codes": pack_across(tokens, bits),
        "scale": scale.squeeze(along),
        "minimum": low.squeeze(along).to(exact.dtype),
    }


def grouped(values: Tensor, axis: str, group: int) -> Tensor:
    """A float32 copy, `[..., groups, group, head_dim]` along channels, or `[..., tokens, groups, group]`."""
    copy = values.to(torch.float32, copy=True)
    if axis == "channel":
        return copy.unflatten(-2, (-1, group))
    missing = -values.shape[-1] % group
    if missing:  # the last value again changes neither minimum nor maximum
        copy = torch.cat([copy, copy[..., -1:].expand(*copy.shape[:-1], missing)], -1)
    return copy.unflatten(-1, (-1, group))
