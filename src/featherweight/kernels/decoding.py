"""What the kernels of a decode step are told: how attention is shaped, and where a chosen token goes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """One layer's attention.

    Attributes:
        keys: key heads.
        group: query heads that read one key head; they lie next to each other.
        dim: of a head, even.
        scaling: of the scores.
        query_gain, key_gain: `[dim]` float32, where heads are normed before they are rotated.
        eps: of these norms.
    """

    keys: int
    group: int
    dim: int
    scaling: float
    query_gain: Tensor | None = None
    key_gain: Tensor | None = None
    eps: float = 0.0


#: Values of a digit of a logit, logits of one program that adds up by it, and launches of a search at most.
DIGITS, CUT_BLOCK, CUT_LAUNCHES = 2048, 1024, 6


@dataclass(frozen=True)
class Cut:
    """Scratch of the search for the smallest logit that top-k and top-p leave; see `kernels/triton/decode_cut.py`.

    Attributes:
        sums: `[launches, batch, digits]` int64: how many logits, or how much mass, each digit has.
        maxima: `[batch, parts]` float32, the largest logit of each part.
        prefixes, left, floors: `[launches, batch]` int64: digits known, what is still looked for, top-k's cut.
    """

    sums: Tensor
    maxima: Tensor
    prefixes: Tensor
    left: Tensor
    floors: Tensor

    @classmethod
    def make(cls, batch: int, vocabulary: int, device: torch.device) -> Cut:
        """For `batch` rows of so many logits."""
        sums = torch.zeros(CUT_LAUNCHES, batch, DIGITS, dtype=torch.int64, device=device)
        maxima = torch.zeros(batch, -(-vocabulary // CUT_BLOCK), device=device)
        return cls(sums, maxima, *(torch.zeros_like(sums[..., 0]) for _ in range(3)))


@dataclass(frozen=True)
class Chosen:
    """Where the choice of a token is read and written; no address ever changes, so that a graph can replay it.

    Attributes:
        token: `[batch]` int64, the tokens that the next step reads.
        position: `[1]` int32, tokens in the cache before that step.
        history: `[batch, length]` int32: the token at each place, -1 where the logits were not finite. Pinned memory of the
            host, where the device is another.
        temperature: `[1]` float32; 0 takes the largest logit.
        seed: `[1]` int32, of the draws.
        top_k, top_p: `[1]` float32, of the draws that are cut; which of them count is said at the call.
        best, where, ticket: scratch of a launch.
    """

    token: Tensor
    position: Tensor
    history: Tensor
    temperature: Tensor
    seed: Tensor
    top_k: Tensor
    top_p: Tensor
    best: Tensor = field(repr=False)
    where: Tensor = field(repr=False)
    ticket: Tensor = field(repr=False)
    cut: Cut = field(repr=False)

    @classmethod
    def make(cls, batch: int, length: int, vocabulary: int, device: torch.device) -> Chosen:
        """Room for `batch` sequences of `length` tokens."""
        parts = batch * max(1, -(-vocabulary // 512))

        def zeros(count: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=device)

        history = torch.zeros(batch, length + 1, dtype=torch.int32, pin_memory=device.type == "cuda")
        return cls(
            zeros(batch, torch.int64), zeros(1, torch.int32), history, zeros(1, torch.float32), zeros(1, torch.int32),
            zeros(1, torch.float32), zeros(1, torch.float32) + 1,
            zeros(parts, torch.float32), zeros(parts, torch.int32), zeros(1, torch.int32),
            Cut.make(batch, vocabulary, device),
        )  # fmt: skip
