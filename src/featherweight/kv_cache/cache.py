"""The cache that transformers sees. Importing this module imports transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from featherweight.errors import FeatherweightError
from featherweight.kernels.registry import choose
from featherweight.kv_cache.attach import ATTENTION, attached
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.kv_cache.part import StoredPart
from featherweight.kv_cache.settings import CacheSettings
from featherweight.kv_cache.shapes import cache_shapes, check_shapes


@dataclass
class Reads:
    """Tokens that a layer's attention has read so far, summed over forwards, padding included: in code, and exact."""

    coded_keys: int = 0
    exact_keys: int = 0
    coded_values: int = 0
    exact_values: int = 0


class CompressedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values.

    Where the model's attention is ours, `update` returns the layer itself as keys and as values, and attention reads the codes;
    elsewhere it returns all tokens decoded, which is the same but slow.

    Attributes:
        reads: what was read.
    """

    is_croppable = True

    def __init__(self, index: int, constants: DrawnConstants, direct: Callable[[], bool]) -> None:
        """Layer `index`; `direct` tells whether the model's attention reads codes."""
        super().__init__()
        self._index, self._drawn, self._direct = index, constants, direct
        self._prefill = constants.settings.prefill
        self._recording = False
        self._parts: tuple[StoredPart, StoredPart] | None = None
        self.reads = Reads()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch, heads, dtype and device of `[batch, heads, tokens, head_dim]`."""
        shape = self._drawn.shapes[self._index]
        found = (key_states.shape[-1], value_states.shape[-1])
        if found != (shape.key_dim, shape.value_dim):
            raise FeatherweightError(
                f"layer {self._index} has other head dimensions than the configuration says",
                found=f"keys {found[0]}, values {found[1]}", expected=f"keys {shape.key_dim}, values {shape.value_dim}",
                fix="leave kv_cache out",
            )  # fmt: skip
        self.dtype, self.device = key_states.dtype, key_states.device
        codecs = self._drawn.settings.codecs(self._index)
        drawn = self._drawn.of(self._index, key_states.device)
        states, first = (key_states, value_states), self._drawn.settings.exact_first
        keys, values = (StoredPart(*each, first) for each in zip(codecs, drawn, states, strict=True))
        self._parts = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Add tokens, code what is settled, and return what attention reads.

        Raises:
            FeatherweightError: the batch or the heads are not those of the tokens before.
        """
        if self._parts is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._both
        _check_batch(keys.exact, key_states, self._index)
        keys.append(key_states)
        values.append(value_states)
        alone = key_states.shape[2] == 1
        if alone and not self._recording:
            self.settle()
        self._count()
        if self._direct():
            return self, self
        decoded = keys.decoded(), values.decoded()
        self.after_reading(key_states.shape[2])
        return decoded

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attention of `query [batch, query heads, queries, head_dim]`, the newest tokens', over all tokens.

        `mask` as in the op `cache_attention`.
        """
        keys, values = self._both
        told = keys.told("scores"), values.told("mix")
        signature = {
            "keys": told[0].settings, "values": told[1].settings, "head_dim": query.shape[-1], "queries": query.shape[2],
            "dtype": str(query.dtype).removeprefix("torch."), "exact_first": self._drawn.settings.exact_first,
        }  # fmt: skip
        attended: Tensor = choose("cache_attention", signature, query.device)(query, *told, mask, scaling)
        return attended

    def after_reading(self, queries: int) -> None:
        """Code what a chunk of a prompt has settled, where the settings want it at once."""
        if queries > 1 and self._prefill == "chunked" and not self._recording:
            self.settle()

    def settle(self) -> None:
        """Code now whatever is settled."""
        for part in self._parts or ():
            part.settle()

    @property
    def coded(self) -> bool:
        """Whether anything is in code."""
        return any(part.coded for part in self.parts)

    @property
    def _both(self) -> tuple[StoredPart, StoredPart]:
        assert self._parts is not None
        return self._parts

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        """Keys and values; none before the first token."""
        return self._parts or ()

    def _count(self) -> None:
        keys, values = self._both
        self.reads.coded_keys += keys.read_coded
        self.reads.exact_keys += keys.total - keys.read_coded
        self.reads.coded_values += values.read_coded
        self.reads.exact_values += values.total - values.read_coded

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self._parts[0].total if self._parts else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens with the new ones, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self._parts, self.is_initialized, self._recording, self.reads = None, False, False, Reads()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest `|tokens_to_remove|` tokens; what is left counts as final, and settles.

        A group in code that is cut is decoded; its remaining tokens are exact until they are coded again, which loses a second time.
        """
        total = max(0, self.get_seq_length() - abs(tokens_to_remove))
        for part in self.parts:
            part.crop(total)
        if self._recording or self._prefill == "chunked":
            self.settle()

    def activate_past_recording(self) -> None:
        """Code nothing before the next `crop`: speculated tokens may not stay."""
        self._recording = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the sequences `beam_idx`."""
        self._change_batch(lambda each: each.index_select(0, beam_idx.to(each.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._change_batch(lambda each: each.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`."""
        self._change_batch(lambda each: each[indices.to(each.device), ...])

    def _change_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        for part in self.parts:
            part.change_batch(change)


class CompressedCache(Cache):  # type: ignore[misc]
    """Keys and values in the codecs of `settings`, one `CompressedLayer` a layer; an ordinary `past_key_values`.

    Sequences that are padded on the left are masked as in a stock cache; padding is coded with the tokens of its group.

    Attributes:
        settings: which codec stores what.
    """

    layers: list[CompressedLayer]

    def __init__(self, config: Any, settings: CacheSettings, constants: DrawnConstants | None = None) -> None:
        """For a model of `config` (of transformers); `constants` if they are drawn already.

        Raises:
            FeatherweightError: a model whose cache cannot be compressed, or a head dimension that a codec cannot serve.
        """
        if constants is None:
            shapes = cache_shapes(config)
            check_shapes(settings, shapes)
            constants = DrawnConstants(settings, shapes)
        self.settings = settings
        text = config.get_text_config(decoder=True)

        def direct() -> bool:
            return bool(text._attn_implementation == ATTENTION)

        super().__init__(layers=[CompressedLayer(index, constants, direct) for index in range(len(constants.shapes))])

    @classmethod
    def from_model(cls, model: Any, settings: CacheSettings | None = None) -> CompressedCache:
        """An empty cache for `model`, by the settings that were attached to it unless others are given.

        Raises:
            FeatherweightError: no settings, or what the constructor raises.
        """
        known = attached(model)
        if settings is None and known is None:
            raise FeatherweightError(
                "the model has no settings for its cache", found="a model without kv_cache", expected="CacheSettings",
                fix="give settings, or call attach_cache(model, settings)",
            )  # fmt: skip
        if known is not None and settings in (None, known.settings):
            return cls(model.config, known.settings, known)
        assert settings is not None
        return cls(model.config, settings)

    def settle(self) -> None:
        """Code now whatever is settled: after a prompt that is complete."""
        for layer in self.layers:
            layer.settle()

    @property
    def nbytes(self) -> int:
        """Of all codes and of the tokens still exact."""
        return sum(part.nbytes for layer in self.layers for part in layer.parts)

    @property
    def allocated_nbytes(self) -> int:
        """Of the buffers, their room for growth included."""
        return sum(part.allocated for layer in self.layers for part in layer.parts)

    @property
    def coded_nbytes(self) -> int:
        """Of the codes alone."""
        return sum(part.coded_nbytes for layer in self.layers for part in layer.parts)

    @property
    def exact_nbytes(self) -> int:
        """What a stock cache of the same tokens holds."""
        tokens = [(part.total, part.exact) for layer in self.layers for part in layer.parts]
        return sum(total * exact.shape[0] * exact.shape[1] * exact.shape[3] * exact.itemsize for total, exact in tokens)

    @property
    def reads(self) -> list[Reads]:
        """What each layer's attention has read."""
        return [layer.reads for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """What is stored and what was read, for `--json`."""
        names = ("nbytes", "coded_nbytes", "exact_nbytes", "allocated_nbytes")
        told = {name: getattr(self, name) for name in names}
        return {"tokens": self.get_seq_length(), **told, "reads": [asdict(each) for each in self.reads]}


def _check_batch(before: Tensor, fresh: Tensor, layer: int) -> None:
    if (*before.shape[:2], before.shape[3]) != (*fresh.shape[:2], fresh.shape[3]):
        raise FeatherweightError(
            f"the batch changed in the middle of layer {layer}'s cache",
            found=f"batch {fresh.shape[0]}, heads {fresh.shape[1]}, head_dim {fresh.shape[3]}",
            expected=f"batch {before.shape[0]}, heads {before.shape[1]}, head_dim {before.shape[3]}",
            fix="use a new cache, or reorder_cache, batch_repeat_interleave, batch_select_indices",
        )
