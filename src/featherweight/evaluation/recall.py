"""Whether a model still finds what stands far back in its cache: copying, induction, and a code in filler."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from featherweight.data.corpus import tokens_sha256
from featherweight.errors import FeatherweightError, nearest
from featherweight.evaluation.forward import Progress, context_of, dtype_of, measuring, window_logits
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.summary import mean_with_error
from featherweight.evaluation.through_cache import ThroughCache, cache_label
from featherweight.kv_cache import CacheSettings

#: A task counts if the exact cache gets this share right.
COUNTABLE = 0.8

EXAMPLES, LENGTH, SEED = 16, 512, 0
PREFIX = "recall:"

_CHARACTERS = 64  # of text to draw from, for each token of an example
_WARM = 8  # tokens of a repetition that tell which text is repeated
_NAMES = ("river", "house", "ship", "garden", "tower", "bridge", "mill", "castle")


@dataclass(frozen=True)
class Example:
    """Tokens of which the last ones can be known from earlier ones.

    Attributes:
        tokens: `[T]` int64.
        answers: how many of the last tokens are scored.
    """

    tokens: Tensor
    answers: int


@dataclass(frozen=True)
class RecallTask:
    """A kind of example.

    Attributes:
        name: after `recall:`.
        summary: one line.
        make: from a tokenizer's encoder, filler tokens, a length and a generator to an example of exactly that length.
        whole: whether an example is right only if all its answers are, as greedy generation would have to give them; otherwise
            each answer counts.
    """

    name: str
    summary: str
    make: Callable[[Callable[[str], list[int]], Sequence[int], int, random.Random], tuple[list[int], int]]
    whole: bool


def _copy(encode: Callable[[str], list[int]], filler: Sequence[int], length: int, draw: random.Random) -> tuple[list[int], int]:
    passage = _passage(filler, length // 2, draw)
    return [*filler[: length % 2], *passage, *passage], len(passage) - _WARM


def _induction(
    encode: Callable[[str], list[int]], filler: Sequence[int], length: int, draw: random.Random
) -> tuple[list[int], int]:
    shuffled = _passage(filler, length // 2, draw)
    draw.shuffle(shuffled)
    return [*filler[: length % 2], *shuffled, *shuffled], len(shuffled) - _WARM


def _passkey(
    encode: Callable[[str], list[int]], filler: Sequence[int], length: int, draw: random.Random
) -> tuple[list[int], int]:
    sentence = f"The secret code of the old {draw.choice(_NAMES)} is"
    answer = encode(f" {draw.randint(10_000, 99_999)}")
    needle, question = [*encode(f"\n{sentence}"), *answer, *encode(".\n")], encode(f"\n{sentence}")
    room = length - len(needle) - len(question) - len(answer)
    around = _passage(filler, room, draw)
    place = draw.randint(room // 10, 7 * room // 10)  # never among the newest, which most caches keep exact
    return [*around[:place], *needle, *around[place:], *question, *answer], len(answer)


TASKS = {
    task.name: task
    for task in (
        RecallTask("copy", "a passage, then the same again", _copy, False),
        RecallTask("induction", "the words of a passage in random order, then the same again", _induction, False),
        RecallTask("passkey", "a code of five digits somewhere in a text, asked for at its end", _passkey, True),
    )
}


def recall(
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    cache: CacheSettings | None,
    stepwise: bool = False,
    length: int | None = None,
    examples: int | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Share of answers that are the model's first choice with everything before them given, through the cache.

    Of a task that is right as a whole this is what greedy generation would score. With a coded cache the exact one is measured
    too, on the same tokens, and the ratio of both; a ratio is only given where the exact cache gets 80 % right, since elsewhere
    it says nothing about the cache.

    Args:
        model, tokenizer: of a causal language model.
        name: of `TASKS`.
        cache: None for the exact cache alone.
        stepwise: see `ThroughCache`.
        length: tokens of an example; 512, or the model's context where shorter, if None.
        examples: how many; 16 if None.
        seed: of the passages, codes and places.
        progress: called after each forward.

    Returns:
        "recall_NAME_exact"; with a cache also "recall_NAME" and "recall_NAME_relative", NaN where it is not countable.

    Raises:
        FeatherweightError: no such task, a length beyond the model's context, or too short for the task or the cache.
    """
    if name not in TASKS:
        raise FeatherweightError(
            "no such recall task", found=name, expected=", ".join(TASKS), fix=f"did you mean {nearest(name, TASKS, 1)[0]}?"
        )
    items = make_examples(tokenizer, TASKS[name], _length(model, length), examples or EXAMPLES, seed)
    tokens = torch.stack([item.tokens for item in items])
    ways: list[tuple[str, Any, CacheSettings | None]] = [(f"recall_{name}_exact", model, None)]
    if cache is not None:
        ways.append((f"recall_{name}", ThroughCache(model, cache, stepwise=stepwise), cache))
    found: list[Measurement] = []
    for place, (label, way, settings) in enumerate(ways):
        right = torch.empty(len(items), dtype=torch.float64)
        with measuring(way):
            for index, item in enumerate(items):
                right[index] = _right(window_logits(way, item.tokens, index), item, TASKS[name].whole)
                if progress is not None:
                    progress(place * len(items) + index + 1, len(ways) * len(items))
        protocol = Protocol(
            f"{PREFIX}{name}", tokens_sha256(tokens), tokens_sha256(tokens), tokens.shape[1], len(items), rule="recall",
            joining=None, cache=cache_label(settings), dtype=dtype_of(model),
        )  # fmt: skip
        found.append(Measurement(label, *mean_with_error(right), protocol))
    if cache is not None:
        exact, through = found
        ratio = through.value / exact.value if exact.value >= COUNTABLE else math.nan
        found.append(Measurement(f"recall_{name}_relative", ratio, None, through.protocol))
    return found


def make_examples(tokenizer: Any, task: RecallTask, length: int, count: int, seed: int) -> list[Example]:
    """Examples of exactly `length` tokens, a BOS token included where the tokenizer sets one, from the packaged held-out text.

    Raises:
        FeatherweightError: a length that leaves no room.
    """
    text = (resources.files("featherweight") / "assets" / "heldout.txt").read_text(encoding="utf-8")
    special = tokenizer("", verbose=False)["input_ids"]
    front = special[:1] if special and special[0] == tokenizer.bos_token_id else []

    def encode(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

    if length - len(front) < 64:
        raise FeatherweightError(
            "a recall task needs room", found=f"{length} tokens", expected="72 or more", fix="--length 512"
        )
    filler, draw = encode(text[: _CHARACTERS * length]), random.Random(f"{task.name} {seed}")
    items = []
    for _ in range(count):
        tokens, answers = task.make(encode, filler, length - len(front), draw)
        items.append(Example(torch.tensor([*front, *tokens]), answers))
    return items


def _passage(filler: Sequence[int], length: int, draw: random.Random) -> list[int]:
    if length > len(filler):
        raise FeatherweightError("the packaged text is shorter", found=f"{length} tokens", expected=f"at most {len(filler)}")
    start = draw.randint(0, len(filler) - length)
    return list(filler[start : start + length])


def _length(model: Any, asked: int | None) -> int:
    context = context_of(model)
    length = asked or min(LENGTH, context or LENGTH)
    if context is not None and length > context:
        raise FeatherweightError(
            "the examples are longer than the model was trained for", found=f"{length} tokens",
            expected=f"at most {context} (max_position_embeddings)", fix=f"--length {context}",
        )  # fmt: skip
    return length


def _right(logits: Tensor, item: Example, whole: bool) -> float:
    chosen = logits[-item.answers - 1 : -1].argmax(-1).cpu() == item.tokens[-item.answers :]
    return float(chosen.all()) if whole else float(chosen.double().mean())
