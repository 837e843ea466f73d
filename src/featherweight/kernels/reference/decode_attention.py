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
    count = heads.keys * heads.group
    q, k, v = qkv.view(batch, -1, dim).split([count, heads.keys, heads.keys], 1)
    q = _rotated(q.float(), heads.query_gain, heads.eps, cosine[here], sine[here]).to(keys.dtype)
    keys[:, :, here] = _rotated(k.float(), heads.key_gain, heads.eps, cosine[here], sine[here]).to(keys.dtype)
    values[:, :, here] = v
    known, held = keys[:, :, : here + 1].float(), values[:, :, : here + 1].float()
    scores = q.float().view(batch, heads.keys, heads.group, dim) @ known.transpose(-1, -2) * heads.scaling
    return out.copy_((scores.softmax(-1) @ held).view(batch, count * dim))


def _rotated(value: Tensor, gain: Tensor | None, eps: float, cosine: Tensor, sine: Tensor) -> Tensor:
    if gain is not None:
        value = normed(value, eps) * gain
    first, second = value.chunk(2, -1)
    return value * cosine.float() + torch.cat([-second, first], -1) * sine.float()
