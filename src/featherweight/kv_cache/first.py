"""A codec beside whose codes the first tokens of the cache stay as they are: many models put most of their attention there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from featherweight.kernels.reference.cache_attention import grouped_product
from featherweight.kv_cache.codec import CacheCodec, Codes, Constants

#: Under this name, beside the codec's tensors: the coded tokens among the first ones, exact, an entry each.
FIRST = "first"


class FirstExact:
    """`codec` for all tokens but the first `count`, which are read from an exact copy.

    They keep their places in the codes, so that groups are counted from the first token as ever; but what shares means or
    scales with them is coded as if they were like the others of the group.

    Source: attention sinks, Xiao et al. 2024, arXiv:2309.17453; exact beside codes, KVQuant, Hooper et al. 2024, arXiv:2401.18079.
    """

    def __init__(self, codec: CacheCodec, count: int) -> None:
        self.codec, self.count = codec, count

    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """As `CacheCodec.layout`."""
        return {**self.codec.layout(head_dim, dtype), **({FIRST: (1, (head_dim,), dtype)} if self.count else {})}

    def encode(self, exact: Tensor, constants: Constants, start: int) -> dict[str, Tensor]:
        """As `CacheCodec.encode`, of tokens from number `start` on."""
        count = min(exact.shape[2], max(0, self.count - start))
        stored = self.codec.encode(self._without(exact, count), constants)
        return {**stored, FIRST: exact[:, :, :count]} if self.count else stored

    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """As `CacheCodec.decode`."""
        first, rest = _split(codes)
        decoded = self.codec.decode(rest, constants, dtype)
        return decoded if first is None else torch.cat([first.to(dtype), decoded[:, :, first.shape[2] :]], 2)

    def scores(self, query: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """As `CacheCodec.scores`."""
        first, rest = _split(codes)
        scores = self.codec.scores(query, rest, constants)
        if first is not None:
            scores[..., : first.shape[2]] = grouped_product(query, first.transpose(-1, -2))
        return scores

    def mix(self, weights: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """As `CacheCodec.mix`."""
        first, rest = _split(codes)
        if first is None:
            return self.codec.mix(weights, rest, constants)
        count = first.shape[2]
        mixed = self.codec.mix(pad(weights[..., count:], (count, 0)), rest, constants)
        return mixed + grouped_product(weights[..., :count], first).to(mixed.dtype)

    def _without(self, exact: Tensor, count: int) -> Tensor:
        """`exact` with the mean of the other tokens of the last group that the first `count` reach into in place of these."""
        others = exact[:, :, count : count + -count % self.codec.group]
        if not others.shape[2]:
            return exact
        return torch.cat([others.mean(2, keepdim=True).expand(-1, -1, count, -1), exact[:, :, count:]], 2)


def _split(codes: Codes) -> tuple[Tensor | None, Codes]:
    """The first tokens, None if none is coded, and the codec's own tensors."""
    first = codes.get(FIRST)
    return (first if first is not None and first.shape[2] else None), {name: codes[name] for name in codes if name != FIRST}
