"""Multiple choice: by log-likelihood of the choices, and by asking for a letter as FastLlama did with RACE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from featherweight.data.choices import Question, Questions
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import Progress, context_of, device_of, dtype_of, measuring
from featherweight.evaluation.protocol import Measurement, Protocol

#: The seed's: the first 100 prompts, at most 20 new tokens.
ASKED, ANSWER_TOKENS = 100, 20

#: In the seed's order: an explicit answer, or a letter with a bracket.
_ANSWERS = (re.compile(r"answer(?:\s*:|\s+is\s*:?)\s*\(?([a-d])\b", re.IGNORECASE), re.compile(r"\b([a-d])\)", re.IGNORECASE))


@dataclass(frozen=True)
class _Row:
    """Tokens of a context and one choice.

    Attributes:
        tokens: of both.
        start: position of the choice's first token.
        length: characters of the choice.
    """

    tokens: list[int]
    start: int
    length: int


def choose_by_likelihood(
    model: Any, tokenizer: Any, questions: Questions, *, limit: int | None = None, progress: Progress | None = None
) -> list[Measurement]:
    """Share of questions whose right choice is the likeliest: by its log-probability, and by that per character.

    The second is less drawn to short choices (lm-evaluation-harness calls it `acc_norm`). A choice follows its context after
    one space; a RACE article is followed by its question. Standard errors are those of a share, `√(p (1 − p) / (n − 1))`.

    Args:
        model, tokenizer: of a causal language model.
        limit: take the first so many questions.
        progress: called after each.

    Returns:
        "accuracy" and "accuracy_per_character".

    Raises:
        FeatherweightError: a question longer than the model's context.
    """
    items = questions.items[:limit]
    right = torch.zeros(2, dtype=torch.int64)
    for done, item in enumerate(items):
        rows = [_row(model, tokenizer, item, choice) for choice in item.choices]
        sums = torch.tensor(_log_likelihoods(model, rows), dtype=torch.float64)
        lengths = torch.tensor([row.length for row in rows], dtype=torch.float64)
        right += torch.tensor([int(sums.argmax()) == item.answer, int((sums / lengths).argmax()) == item.answer])
        if progress is not None:
            progress(done + 1, len(items))
    protocol = _protocol(model, questions, len(items), "likelihood")
    names = ("accuracy", "accuracy_per_character")
    return [_share(name, int(count), len(items), protocol) for name, count in zip(names, right, strict=True)]


def ask_for_letters(
    model: Any, tokenizer: Any, questions: Questions, *, limit: int = ASKED, progress: Progress | None = None
) -> list[Measurement]:
    """The seed's RACE protocol: the article, the question and lettered options; greedy, 20 tokens; the first letter named.

    Returns:
        "answered", the share with a letter; "accuracy_answered", of those (the seed's figure); "accuracy", of all.

    Raises:
        FeatherweightError: a question longer than the model's context.
    """
    items = questions.items[:limit]
    answered = right = 0
    for done, item in enumerate(items):
        letter = parse_answer(_greedy(model, tokenizer, race_prompt(item)))
        answered += letter is not None
        right += letter == item.answer
        if progress is not None:
            progress(done + 1, len(items))
    protocol = _protocol(model, questions, len(items), "letters, greedy")
    return [
        _share("answered", answered, len(items), protocol),
        _share("accuracy_answered", right, answered, protocol),
        _share("accuracy", right, len(items), protocol),
    ]


def race_prompt(item: Question) -> str:
    """Article, question, a line that asks for the best choice, and the options, each on its own line."""
    options = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCDEFGHIJ", item.choices, strict=False))
    return f"{item.context}\n\n{item.question}\nSelect the best choice from the following options.\n{options}\n"


def parse_answer(text: str) -> int | None:
    """Index of the first letter that `text` names: "answer: X", "answer is X", or "X)"; None where there is none."""
    found = [match for pattern in _ANSWERS if (match := pattern.search(text))]
    return "abcd".index(min(found, key=lambda match: match.start()).group(1).lower()) if found else None


def _row(model: Any, tokenizer: Any, item: Question, choice: str) -> _Row:
    before = f"{item.context}\n{item.question}" if item.question else item.context
    context = tokenizer(before, verbose=False)["input_ids"]
    tokens = tokenizer(f"{before} {choice}", verbose=False)["input_ids"]
    shared = next((i for i, pair in enumerate(zip(context, tokens, strict=False)) if pair[0] != pair[1]), len(context))
    _check_length(model, len(tokens))
    return _Row(tokens, max(1, min(shared, len(tokens) - 1)), max(1, len(choice)))


def _log_likelihoods(model: Any, rows: Sequence[_Row]) -> list[float]:
    """Sum of the log-probabilities of each row's choice; rows are padded on the right, which a causal model cannot see."""
    width = max(len(row.tokens) for row in rows)
    padded = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in rows], device=device_of(model))
    with measuring(model):
        scores = torch.log_softmax(model(input_ids=padded, use_cache=False).logits.float(), -1)
    taken = scores[:, :-1].gather(2, padded[:, 1:, None])[..., 0]
    return [float(taken[i, row.start - 1 : len(row.tokens) - 1].sum()) for i, row in enumerate(rows)]


def _greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    """The likeliest 20 tokens, end tokens disregarded."""
    ids = torch.tensor([tokenizer(prompt, verbose=False)["input_ids"]], device=device_of(model))
    _check_length(model, ids.shape[1] + ANSWER_TOKENS)
    chosen, cache, fresh = [], None, ids
    for _ in range(ANSWER_TOKENS):
        with measuring(model):
            output = model(input_ids=fresh, past_key_values=cache, use_cache=True)
        cache, fresh = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(int(fresh))
    return str(tokenizer.decode(chosen, skip_special_tokens=True))


def _check_length(model: Any, tokens: int) -> None:
    positions = context_of(model)
    if positions is not None and tokens > positions:
        raise FeatherweightError(
            "a question is longer than the model's context", found=f"{tokens} tokens", expected=f"at most {positions}"
        )


def _protocol(model: Any, questions: Questions, count: int, rule: str) -> Protocol:
    return Protocol(
        questions.name, questions.sha256, "", context_of(model) or 0, count, rule=rule, joining=None, dtype=dtype_of(model)
    )


def _share(name: str, count: int, total: int, protocol: Protocol) -> Measurement:
    value = count / total if total else float("nan")
    return Measurement(name, value, sqrt(value * (1 - value) / (total - 1)) if total > 1 else None, protocol)
