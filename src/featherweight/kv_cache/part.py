"""The keys, or the values, of one layer: the oldest tokens in code, the newest, and the very first, as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from featherweight.kernels.cache_part import CachePart
from featherweight.kv_cache.codec import CacheCodec, Constants
from featherweight.kv_cache.first import FIRST, FirstExact
from featherweight.kv_cache.growing import Growing
from featherweight.kv_cache.registry import codec_settings


class StoredPart:
    """Codes of the settled tokens and, after them, the others exact.

    Attributes:
        codec, constants: how tokens are coded.
        coded: tokens in code.
    """

    def __init__(self, codec: CacheCodec, constants: Constants, like: Tensor, exact_first: int = 0) -> None:
        """Empty; `like [batch, heads, tokens, head_dim]` tells shape, dtype and device; the first `exact_first` stay exact."""
        self.codec, self.constants, self.coded = codec, constants, 0
        self._coder = FirstExact(codec, exact_first)
        self._exact = Growing(like[:, :, :0])
        self._tokens: dict[str, int] = {}
        self._codes: dict[str, Growing] = {}
        for name, (tokens, shape, dtype) in self._coder.layout(like.shape[-1], like.dtype).items():
            self._tokens[name] = tokens
            self._codes[name] = Growing(like.new_empty(*like.shape[:2], 0, *shape, dtype=dtype))

    @property
    def total(self) -> int:
        """Tokens in all."""
        return self.coded + len(self._exact)

    @property
    def exact(self) -> Tensor:
        """The tokens that are not in code, `[batch, heads, tokens, head_dim]`."""
        return self._exact.live

    @property
    def codes(self) -> dict[str, Tensor]:
        """The codec's tensors."""
        return {name: grown.live for name, grown in self._codes.items()}

    @property
    def read_coded(self) -> int:
        """Tokens that attention reads in code: those in code that are not exact as well."""
        return self.coded - min(self.coded, self._coder.count)

    def append(self, fresh: Tensor) -> None:
        """Add tokens `[batch, heads, tokens, head_dim]` as they are."""
        self._exact.append(fresh)

    def settle(self) -> None:
        """Code the tokens that the codec says are settled."""
        count = self.codec.settled(self.total) - self.coded
        if count > 0:
            for name, fresh in self._coder.encode(self._exact.take(count), self.constants, self.coded).items():
                self._codes[name].append(fresh)
            self.coded += count
            self._exact.compact()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The codec's tensors with the room behind their entries."""
        return {name: grown.buffer for name, grown in self._codes.items()}

    @property
    def entry_tokens(self) -> dict[str, int]:
        """Tokens in an entry of each of these."""
        return dict(self._tokens)

    def reserve(self, total: int) -> None:
        """Make room for codes of `total` tokens."""
        for name, grown in self._codes.items():
            grown.reserve(total // self._tokens[name])

    def resume(self, coded: int, exact: Tensor) -> None:
        """Count `coded` tokens as in code, whoever coded them in `buffers`, and put `exact` behind them."""
        for name, grown in self._codes.items():
            grown.count_as(coded // self._tokens[name])
        self.coded = coded
        self._exact.truncate(0)
        self._exact.append(exact)

    def crop(self, total: int) -> None:
        """Keep the oldest `total` tokens.

        Whole groups stay in code. Of a group that is cut the tokens that stay are decoded, and count as exact from then on.
        """
        if total >= self.coded:
            self._exact.truncate(total - self.coded)
            return
        whole = total - total % self.codec.group
        rest = self._decode(whole)[:, :, : total - whole] if total > whole else self.exact[:, :, :0]
        for name, grown in self._codes.items():
            grown.truncate(whole // self._tokens[name])
        self._exact.truncate(0)
        self._exact.append(rest)
        self.coded = whole

    def change_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Select or repeat along the batch."""
        for grown in (self._exact, *self._codes.values()):
            grown.change_batch(change)

    def decoded(self) -> Tensor:
        """All tokens as `[batch, heads, tokens, head_dim]`, a copy where any is in code."""
        return torch.cat([self._decode(0), self.exact], 2) if self.coded else self.exact

    def told(self, product: Literal["scores", "mix"]) -> CachePart:
        """What an attention kernel reads."""
        codes = self.codes
        method = self._coder.scores if product == "scores" else self._coder.mix
        return CachePart(
            codec_settings(self.codec), codes, self.constants, self.coded, self.exact,
            partial(method, codes=codes, constants=self.constants),
        )  # fmt: skip

    def _decode(self, first: int) -> Tensor:
        """Coded tokens from `first` on, which begins a group."""
        codes = {name: grown.live[:, :, first // self._tokens[name] :] for name, grown in self._codes.items()}
        return self._coder.decode(codes, self.constants, self.exact.dtype)

    @property
    def nbytes(self) -> int:
        """Of the codes and the exact tokens, the first ones' copy included."""
        return sum(grown.nbytes for grown in (self._exact, *self._codes.values()))

    @property
    def allocated(self) -> int:
        """Bytes of the buffers, their room for growth included."""
        return sum(grown.allocated for grown in (self._exact, *self._codes.values()))

    @property
    def coded_nbytes(self) -> int:
        """Of the codes alone."""
        return sum(grown.nbytes for name, grown in self._codes.items() if name != FIRST)
