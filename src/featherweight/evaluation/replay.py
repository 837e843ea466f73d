"""What a model makes of a text through a coded cache, in one forward: every query reads what it would have found in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheCodec, Codes, Constants
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.kv_cache.first import FirstExact

#: As transformers knows the attention function.
NAME = "featherweight_replay"

ELEMENTS = 1 << 25  # of a score matrix held at once: 128 MiB of float32

#: Which replay a model's attention modules belong to, while one lasts.
_REPLAYS: WeakKeyDictionary[nn.Module, Replay] = WeakKeyDictionary()


class Replay:
    """Attention of a whole sequence as if it had come token by token through a cache.

    The query of token i has `t = i + 1` tokens in the cache, itself included, and reads key j in code iff
    `exact_first <= j < keys.settled(t)`; values likewise. Tokens are coded in groups counted from the first, so that all codes of
    the sequence are known at once.

    Attributes:
        constants: which codec stores which layer, and what it drew.
        coded: by layer, how many scores and weights fell on coded keys and on coded values so far.
    """

    def __init__(self, constants: DrawnConstants) -> None:
        self.constants = constants
        self.coded: dict[int, list[int]] = {}

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """`softmax(scale · ⟨q, k⟩) v` with keys and values as each query finds them.

        Args:
            layer: its number.
            query: `[batch, query heads, tokens, head_dim]`.
            keys, values: `[batch, heads, tokens, head_dim]`, exact.
            mask: `[batch or 1, 1, tokens, tokens]` bool, True where a query sees a key; None for all that came before.
            scale: of the scores.

        Returns:
            `[batch, query heads, tokens, head_dim]` in the query's dtype.
        """
        part_keys, part_values = self._parts(layer, keys, values)
        total = query.shape[2]
        step = max(1, ELEMENTS // (query.shape[0] * query.shape[1] * total))
        outputs = []
        for start in range(0, total, step):
            end = min(start + step, total)
            counts = range(start + 1, end + 1)
            scores = part_keys.scores(query[:, :, start:end], counts) * scale
            seen = _causal(start, end, query.device) if mask is None else mask[..., start:end, :end]
            weights = scores.float().masked_fill(~seen, -torch.inf).softmax(-1).to(query.dtype)
            outputs.append(part_values.mix(weights, counts))
        tally = self.coded.setdefault(layer, [0, 0])
        for index, part in enumerate((part_keys, part_values)):
            tally[index] += part.read
        return torch.cat(outputs, 2)

    def _parts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[_Part, _Part]:
        settings, drawn = self.constants.settings, self.constants.of(layer, keys.device)
        parts = zip(settings.codecs(layer), (keys, values), drawn, strict=True)
        first, second = (_Part(*part, settings.exact_first) for part in parts)
        return first, second


class _Part:
    """Keys or values of one layer and sequence, exact and in code."""

    def __init__(self, codec: CacheCodec, exact: Tensor, constants: Constants, exact_first: int) -> None:
        self.codec, self.exact, self.constants = codec, exact, constants
        self.coder = FirstExact(codec, exact_first)
        self.layout = self.coder.layout(exact.shape[-1], exact.dtype)
        settled = codec.settled(exact.shape[2])
        self.codes = self.coder.encode(exact[:, :, :settled], constants, 0) if settled else {}
        self.read = 0

    def scores(self, query: Tensor, counts: range) -> Tensor:
        """`⟨q, k⟩` of queries that have `counts` tokens in the cache, each with as many keys as the last one has."""
        low, high, coded = self._span(counts, query.device)
        exact = self.exact[:, :, low : counts[-1]]
        grouped = query.unflatten(1, (exact.shape[1], -1))
        scores = (grouped @ exact.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
        if not high:
            return scores
        from_codes = self.coder.scores(query, self._oldest(high), self.constants).to(scores.dtype)
        both = torch.where(coded, from_codes[..., low:], scores[..., : high - low])
        return torch.cat([from_codes[..., :low], both, scores[..., high - low :]], -1)

    def mix(self, weights: Tensor, counts: range) -> Tensor:
        """`Σ_j p_j v_j` for the same queries."""
        low, high, coded = self._span(counts, weights.device)
        exact = self.exact[:, :, low : counts[-1]]
        late = weights[..., low:]
        if high:
            late = torch.cat([late[..., : high - low].masked_fill(coded, 0), late[..., high - low :]], -1)
        mixed = (late.unflatten(1, (exact.shape[1], -1)) @ exact.unsqueeze(2)).flatten(1, 2)
        if not high:
            return mixed
        early = torch.cat([weights[..., :low], weights[..., low:high].masked_fill(~coded, 0)], -1)
        return mixed + self.coder.mix(early, self._oldest(high), self.constants).to(mixed.dtype)

    def _span(self, counts: range, device: torch.device) -> tuple[int, int, Tensor]:
        """How many tokens all queries read in code, how many the last one does, and `[queries, the tokens between]`."""
        settled = torch.tensor([self.codec.settled(count) for count in counts])
        low, high = int(settled[0]), int(settled[-1])
        self.read += int((settled - self.coder.count).clamp(min=0).sum())
        return low, high, (torch.arange(low, high) < settled[:, None]).to(device)

    def _oldest(self, tokens: int) -> Codes:
        """Codes of so many tokens, whole groups."""
        return {name: tensor[:, :, : tokens // self.layout[name][0]] for name, tensor in self.codes.items()}


def _causal(start: int, end: int, device: torch.device) -> Tensor:
    return torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]


@contextmanager
def replaying(model: nn.Module, replay: Replay) -> Iterator[None]:
    """Every attention of `model` goes through `replay` inside; as before afterwards.

    Raises:
        FeatherweightError: an architecture whose attention cannot be exchanged.
    """
    _register()
    before = model.config._attn_implementation
    modules = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    try:
        model.set_attn_implementation(NAME)
    except ValueError as problem:
        raise FeatherweightError(
            "this architecture does not let its attention be exchanged", found=str(problem).splitlines()[0],
            expected="a model that supports transformers' attention interface", fix="evaluate it stepwise",
        ) from None  # fmt: skip
    try:
        _REPLAYS.update(dict.fromkeys(modules, replay))
        yield
    finally:
        for module in modules:
            _REPLAYS.pop(module, None)
        model.set_attn_implementation(before)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,  # positions and the like, which transformers hands to every attention function
) -> tuple[Tensor, None]:
    """What transformers calls."""
    if softcap is not None or s_aux is not None:
        raise FeatherweightError(
            "attention with soft caps or sinks is not replayed", found=type(module).__name__,
            expected="plain softmax attention", fix="use the exact cache",
        )  # fmt: skip
    replay = _REPLAYS[module]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = replay.attend(int(module.layer_idx), query, key, value, attention_mask, scale)
    return output.transpose(1, 2).contiguous(), None
