"""One token's attention over keys and values in code, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.cache_part import CachePart
from featherweight.kernels.coded_layer import CodedLayer, CodedSide
from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference.cache_attention import cache_attention
from featherweight.kernels.reference.decode_attention import turned


def attend_coded(
    qkv: Tensor, cosine: Tensor, sine: Tensor, layer: CodedLayer, position: Tensor, heads: Heads, reach: int
) -> Tensor:
    """Norm and rotate queries and key, add key and value to the layer, code what that settles, and attend to all tokens.

    Args:
        qkv: `[batch, (queries | keys | values) · dim]`.
        cosine, sine: `[length, dim]` by position.
        layer: changed in place; what its codecs say is settled of `position` tokens is in code.
        position: `[1]`, tokens that it holds already.
        reach: tokens there are at most, the new one included.

    Returns:
        `[batch, query heads · dim]`.
    """
    here = int(position)
    q, k, v = turned(qkv, cosine, sine, here, heads, layer.keys.ring.dtype)
    _add(layer.keys, k, here)
    _add(layer.values, v, here)
    parts = _part(layer.keys, here + 1), _part(layer.values, here + 1)
    layer.lengths.copy_(torch.tensor([parts[0].coded, parts[1].coded, here + 1]))
    return cache_attention(q[:, :, None], *parts, None, heads.scaling).flatten(1)


def _add(side: CodedSide, fresh: Tensor, here: int) -> None:
    size = side.ring.shape[2]
    side.ring[:, :, here % size] = fresh
    before, after = side.settled(here), side.settled(here + 1)
    if after > before:
        places = torch.arange(before, after, device=side.ring.device) % size
        for name, made in side.encode(side.ring[:, :, places]).items():
            side.codes[name][:, :, before // side.tokens[name] : after // side.tokens[name]] = made


def _part(side: CodedSide, total: int) -> CachePart:
    coded = side.settled(total)
    codes = {name: whole[:, :, : coded // side.tokens[name]] for name, whole in side.codes.items()}
    exact = side.ring[:, :, torch.arange(coded, total, device=side.ring.device) % side.ring.shape[2]]
    return CachePart(side.settings, codes, side.constants, coded, exact, lambda asked: side.product(asked, codes))
