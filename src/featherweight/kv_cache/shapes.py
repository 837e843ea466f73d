"""What a model's attention layers put into a cache, told by its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.kv_cache.settings import CacheSettings


@dataclass(frozen=True)
class LayerShape:
    """Of one token in one layer.

    Attributes:
        heads: key-value heads.
        key_dim, value_dim: of a head.
    """

    heads: int
    key_dim: int
    value_dim: int

    def nbytes(self, settings: CacheSettings, layer: int, dtype: torch.dtype) -> float:
        """Bytes of a token that is in code; of a part that is never coded, its exact bytes."""
        keys, values = settings.codecs(layer)
        bits = keys.stored_bits(self.key_dim, dtype) * self.key_dim + values.stored_bits(self.value_dim, dtype) * self.value_dim
        return self.heads * bits / 8


def cache_shapes(config: Any) -> tuple[LayerShape, ...]:
    """The shape of every layer of a decoder whose layers all attend to all earlier tokens.

    Args:
        config: of transformers, the text part is taken of a model of several.

    Raises:
        FeatherweightError: an encoder-decoder, layers without attention, or with a sliding window, in chunks, or linear.
    """
    text = config.get_text_config(decoder=True)
    _check_layers(text, bool(getattr(config, "is_encoder_decoder", False)))
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    own = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        own = 1
    dim = int(getattr(text, "head_dim", None) or hidden // heads)
    return (LayerShape(int(own), dim, dim),) * int(text.num_hidden_layers)


def check_shapes(settings: CacheSettings, shapes: tuple[LayerShape, ...]) -> None:
    """Ask every layer's codecs whether they serve its head dimensions.

    Raises:
        FeatherweightError: what a codec raises.
    """
    for layer, shape in enumerate(shapes):
        keys, values = settings.codecs(layer)
        keys.check(shape.key_dim)
        values.check(shape.value_dim)


def _check_layers(text: Any, encoder: bool) -> None:
    kinds = {str(kind) for kind in getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()}
    other = sorted(kinds - {"full_attention", "attention"})
    found = ""
    if encoder:
        found = "an encoder-decoder"
    elif not getattr(text, "num_attention_heads", None):
        found = "no attention heads"
    elif getattr(text, "kv_lora_rank", None):
        found = "latents instead of keys and values"
    elif other:
        found = f"layers of {', '.join(other)}"
    elif getattr(text, "sliding_window", None) and not kinds:
        found = f"a sliding window of {text.sliding_window}"
    elif getattr(text, "attention_chunk_size", None) and not kinds:
        found = f"attention in chunks of {text.attention_chunk_size}"
    if found:
        raise FeatherweightError(
            f"the cache of a {getattr(text, 'model_type', 'such a')} model cannot be compressed",
            found=found,
            expected="a decoder whose layers all attend to all earlier tokens",
            fix="leave kv_cache out",
        )
