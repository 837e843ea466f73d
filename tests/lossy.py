"""A small codec for tests: rounds groups of tokens coarsely and keeps the newest exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from featherweight.kv_cache import CacheCodec


@dataclass(frozen=True)
class Coarse(CacheCodec):
    """Rounds to multiples of the group's own mean magnitude, mixed by a drawn sign a channel."""

    name: ClassVar[str] = "coarse"
    summary: ClassVar[str] = "for tests"
    tokens: int = 4
    newest: int = 3

    @property
    def group(self):
        return self.tokens

    def settled(self, total):
        return max(0, total - self.newest) // self.tokens * self.tokens

    def constants(self, head_dim, generator):
        return {"signs": torch.randn(head_dim, generator=generator).sign()}

    def layout(self, head_dim, dtype):
        return {"codes": (1, (head_dim,), torch.int8), "step": (self.tokens, (1,), dtype)}

    def encode(self, exact, constants):
        grouped = (exact * constants["signs"].to(exact.dtype)).unflatten(2, (-1, self.tokens))
        step = grouped.abs().mean((-2, -1), keepdim=True)
        codes = (grouped / step).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes.flatten(2, 3), "step": step.flatten(3)}

    def decode(self, codes, constants, dtype):
        values = codes["codes"].to(dtype) * codes["step"].to(dtype).repeat_interleave(self.tokens, 2)
        return values * constants["signs"].to(dtype)
