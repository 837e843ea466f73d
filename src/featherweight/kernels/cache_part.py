"""What an attention kernel is told about the keys, or the values, of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class CachePart:
    """The oldest tokens in code, the others as they are.

    Attributes:
        settings: of the codec, its name as `codec`: plain values.
        codes, constants: the codec's tensors; beside its codes, where settings say so, "first": the first tokens, to be read
            from there instead, `[batch, heads, tokens, head_dim]`.
        coded: tokens in code.
        exact: the tokens after them, `[batch, heads, tokens, head_dim]`.
        product: with the tokens in code: scores of queries for keys, the mix by weights for values. A kernel may do without.
    """

    settings: Mapping[str, Any]
    codes: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    coded: int
    exact: Tensor
    product: Callable[[Tensor], Tensor]
