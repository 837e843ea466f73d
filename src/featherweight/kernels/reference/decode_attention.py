"""One token's attention over a static cache, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference.decode_rows import normed


def make_scratch(heads: Heads, batch: int, reach: int, device: torch.device) -> None:
    """Nothing is needed."""


def attend(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    heads: Heads,
    scratch: object,
    out: Tensor,
) -> Tensor:
    """Norm and rotate queries and key, append key and value at `position`, and attend to all tokens up to it.

    Args:
        qkv: `[batch, (queries | keys | values) · dim]`.
        cosine, sine: `[length, dim]` by position.
        keys, values: `[batch, key heads, length, dim]`, changed at `position`.
        position: `[1]`, tokens that the cache holds already.
        scratch: of the kernel.
        out: `[batch, query heads · dim]`.
    """
    here, batch, dim = int(position), qkv.shape[0], heads.dim
    q, keys[:, :, here], values[:, :, here] = turned(qkv, cosine, sine, here, heads, keys.dtype)
    known, held = keys[:, :, : here + 1].float(), values[:, :, : here + 1].float()
    scores = q.float().view(batch, heads.keys, heads.group, dim) @ known.transpose(-1, -2) * heads.scaling
    return out.copy_((scores.softmax(-1) @ held).view(batch, heads.keys * heads.group * dim))


def turned(
    qkv: Tensor, cosine: Tensor, sine: Tensor, here: int, heads: Heads, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normed and rotated, and values: `[batch, heads, dim]`."""
    count = heads.keys * heads.group
    q, k, v = qkv.view(qkv.shape[0], -1, heads.dim).split([count, heads.keys, heads.keys], 1)
    q = _rotated(q.float(), heads.query_gain, heads.eps, cosine[here], sine[here]).to(dtype)
    return q, _rotated(k.float(), heads.key_gain, heads.eps, cosine[here], sine[here]).to(dtype), v


def _rotated(value: Tensor, gain: Tensor | None, eps: float, cosine: Tensor, sine: Tensor) -> Tensor:
    if gain is not None:
        value = normed(value, eps) * gain
    first, second = value.chunk(2, -1)
    return value * cosine.float() + torch.cat([-second, first], -1) * sine.float()
