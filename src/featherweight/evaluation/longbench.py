"""LongBench: answers generated through the cache, and scored."""

from __future__ import annotations

from typing import Any

import torch

from featherweight.data.longbench import LongExamples
from featherweight.decoding.sampling import Sampling
from featherweight.errors import FeatherweightError
from featherweight.evaluation.answers import score_answer
from featherweight.evaluation.forward import Progress, context_of, device_of, dtype_of, measuring
from featherweight.evaluation.generate import Tally, end_tokens, generate_tokens
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.summary import mean_with_error
from featherweight.evaluation.through_cache import cache_label
from featherweight.kv_cache import CacheSettings
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.kv_cache.shapes import cache_shapes, check_shapes

PREFIX = "longbench:"


def longbench(
    model: Any,
    tokenizer: Any,
    examples: LongExamples,
    *,
    cache: CacheSettings | None,
    length: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Mean score of greedy answers, 0 to 1: "longbench_NAME".

    A prompt that does not fit beside its answer loses its middle. Its last token is fed alone, so that the answer's first token
    already reads the codes.

    Args:
        model, tokenizer: of a causal language model.
        examples: of one set.
        cache: None for the exact one.
        length: tokens of prompt and answer together at most; None for the model's context.
        progress: called after each answer.

    Raises:
        FeatherweightError: no room for a prompt, a length beyond the model's context, a cache that does not suit the model, or
            answers that never read a code.
    """
    kind = examples.kind
    room, constants = _room(model, length, kind.tokens), _constants(model, cache)
    scores, coded = torch.empty(len(examples.items), dtype=torch.float64), 0
    ends = end_tokens(model, tokenizer)
    for index, item in enumerate(examples.items):
        prompt = cut_middle(tokenizer(item.prompt, verbose=False)["input_ids"], room)
        tokens, read = _greedy(model, prompt, kind.tokens, ends, constants)
        answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
        if kind.first_line:
            answer = answer.lstrip("\n").split("\n")[0]
        scores[index] = score_answer(kind.metric, answer, item.answers, item.classes)
        coded += read
        if progress is not None:
            progress(index + 1, len(examples.items))
    if cache is not None and cache != CacheSettings() and not coded:
        raise FeatherweightError(
            "no answer read any code", found=f"{kind.name}: prompts shorter than what the cache keeps exact",
            expected="longer prompts", fix="use --kv-cache none, or a codec that keeps fewer tokens exact",
        )  # fmt: skip
    protocol = Protocol(
        f"{PREFIX}{kind.name}", examples.sha256, "", room + kind.tokens, len(scores), rule=f"generation, {kind.metric}",
        joining=None, cache=cache_label(cache), dtype=dtype_of(model),
    )  # fmt: skip
    return Measurement(f"longbench_{kind.name}", *mean_with_error(scores), protocol)


def cut_middle(tokens: list[int], most: int) -> list[int]:
    """The first and the last half of `most` tokens where there are more."""
    if len(tokens) <= most:
        return tokens
    return [*tokens[: most // 2], *tokens[len(tokens) - (most - most // 2) :]]


def _room(model: Any, length: int | None, new: int) -> int:
    context = context_of(model)
    whole = length or context
    if whole is None or (context is not None and whole > context) or whole - new < 2:
        raise FeatherweightError(
            "no such length for prompts and answers", found=f"{whole} tokens",
            expected=f"more than {new + 1}, the answer's, and at most {context}", fix=f"--length {context}" if context else "--length",
        )  # fmt: skip
    return whole - new


def _constants(model: Any, settings: CacheSettings | None) -> DrawnConstants | None:
    if settings is None:
        return None
    shapes = cache_shapes(model.config)
    check_shapes(settings, shapes)
    return DrawnConstants(settings, shapes)


def _greedy(
    model: Any, prompt: list[int], most: int, ends: frozenset[int], constants: DrawnConstants | None
) -> tuple[list[int], int]:
    """The likeliest tokens up to an end token, and how many keys and values were read in code."""
    from featherweight.kv_cache.cache import CompressedCache

    tally = Tally(constants and CompressedCache(model.config, constants.settings, constants))
    if len(prompt) > 1:
        ids = torch.tensor([prompt[:-1]], device=device_of(model))
        with measuring(model):
            tally.cache = model(input_ids=ids, past_key_values=tally.cache, use_cache=True, logits_to_keep=1).past_key_values
    chosen = list(generate_tokens(model, prompt[-1:], most, Sampling(), torch.Generator(), ends, tally))
    return chosen, 0 if constants is None else sum(each.coded_keys + each.coded_values for each in tally.cache.reads)
