"""What a decode step is told of one layer's keys and values in code: buffers that never move, so that a graph can replay it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class CodedSide:
    """The keys, or the values.

    Attributes:
        settings, constants: as in `CachePart`.
        codes: the codec's tensors with room for all tokens there will be, `[batch, heads, entries, ...]`.
        tokens: how many an entry of each has.
        ring: exact tokens `[batch, heads, size, head_dim]`, token t at place `t % size`, a power of two above what stays exact.
        settled: how many of so many tokens are in code.
        encode: codes of exact tokens, in whole groups.
        product: as in `CachePart`, with codes given.
    """

    settings: Mapping[str, Any]
    constants: Mapping[str, Tensor]
    codes: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    ring: Tensor
    settled: Callable[[int], int]
    encode: Callable[[Tensor], Mapping[str, Tensor]]
    product: Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class CodedLayer:
    """Keys and values, and on the device how many are in code: int32 `[3]`, coded keys, coded values, tokens."""

    keys: CodedSide
    values: CodedSide
    lengths: Tensor
