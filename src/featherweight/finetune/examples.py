"""Examples of a task as one tensor, their loss, and how many are answered rightly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from featherweight.data.tasks import Example

#: Places along the first dimension of an encoded example.
TOKENS, JUDGED = 0, 1


def encode(items: Sequence[Example], tokenizer: Any, length: int) -> tuple[Tensor, int]:
    """Tokens of every example's ways, the right one first, and which of them are judged.

    A way longer than `length` loses tokens at its beginning, as in lm-evaluation-harness.

    Returns:
        `[n, 2, ways, longest]` int64, filled on the right with tokens 0 that are not judged; and how many ways were cut.
    """
    encoded, cut = [], 0
    for item in items:
        order = [item.answer, *(index for index in range(len(item.ways)) if index != item.answer)]
        ways = [_way(tokenizer, *item.ways[index]) for index in order]
        cut += sum(len(way[0]) > length for way in ways)
        encoded.append([tuple(row[-length:] for row in way) for way in ways])
    longest = max(len(way[0]) for ways in encoded for way in ways)
    rows = [
        torch.stack([torch.stack([pad(torch.tensor(row), (0, longest - len(row))) for row in way]) for way in ways], 1)
        for ways in encoded
    ]
    return torch.stack(rows), cut


def _way(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both, and 1 where one belongs to the continuation; at least the last does."""
    before = tokenizer(context, verbose=False)["input_ids"]
    tokens = tokenizer(context + continuation, verbose=False)["input_ids"]
    shared = next((i for i, pair in enumerate(zip(before, tokens, strict=False)) if pair[0] != pair[1]), len(before))
    start = max(1, min(shared, len(tokens) - 1))
    return tokens, [0] * start + [1] * (len(tokens) - start)


def log_likelihoods(model: Any, batch: Tensor) -> Tensor:
    """Sum of the log-probabilities of the judged tokens, `[examples, ways]` float32; `batch` is as `encode` makes it."""
    used = int(batch[:, JUDGED].flatten(0, 1).any(0).nonzero().max()) + 1  # what only fills is not computed
    tokens, judged = (batch[:, place, :, :used].flatten(0, 1) for place in (TOKENS, JUDGED))
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    lost = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return -(lost.view(len(tokens), -1) * judged[:, 1:]).sum(1).view(len(batch), -1)


def choice_loss(model: Any, batch: Tensor) -> Tensor:
    """Cross entropy of the right way among all, by their likelihoods; mean over examples."""
    likely = log_likelihoods(model, batch)
    return cross_entropy(likely, torch.zeros(len(likely), dtype=torch.int64, device=likely.device))


def answered(model: Any, batch: Tensor) -> Tensor:
    """How many examples have their right way likelier than every other; a tie is none."""
    likely = log_likelihoods(model, batch)
    return (likely[:, :1] > likely[:, 1:]).all(1).sum()
