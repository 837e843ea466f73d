"""Our attention among transformers' implementations. Importing this module imports transformers and registers it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from featherweight.errors import FeatherweightError
from featherweight.kv_cache.attach import ATTENTION
from featherweight.kv_cache.cache import CompressedLayer

_UNSERVED = ("softcap", "s_aux", "position_bias")


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | CompressedLayer,
    value: Tensor | CompressedLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Over a layer of a `CompressedCache`, its codes; over tensors, transformers' own scaled dot-product attention.

    Returns:
        `[batch, queries, query heads, head_dim]`, and no weights.
    """
    layer = key if isinstance(key, CompressedLayer) else None
    if layer is not None and layer.coded:
        for name in _UNSERVED:
            if kwargs.get(name) is not None:
                raise FeatherweightError(
                    f"a compressed cache serves no {name}", found=type(module).__name__, expected="plain softmax attention",
                    fix="featherweight.kv_cache.detach_cache(model)",
                )  # fmt: skip
        attended = layer.attend(query, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling).transpose(1, 2)
    else:
        if layer is not None:
            key, value = (part.exact for part in layer.parts)
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if layer is not None:
        layer.after_reading(query.shape[2])
    return attended.contiguous(), None


AttentionInterface.register(ATTENTION, cached_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
