"""Keys or values as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featherweight.kv_cache.codec import CacheCodec, Codes, Constants


@dataclass(frozen=True)
class Exact(CacheCodec):
    """Every token in the model's dtype."""

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "as they are, in the model's dtype"

    def settled(self, total: int) -> int:
        """None is ever coded."""
        return 0

    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """One value each."""
        return {"values": (1, (head_dim,), dtype)}

    def encode(self, exact: Tensor, constants: Constants) -> dict[str, Tensor]:
        """The tensor itself."""
        return {"values": exact}

    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """The tensor itself, in `dtype`."""
        return codes["values"].to(dtype)
