"""Streaming text generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from featherweight.decoding.runner import Runner, open_runner
from featherweight.decoding.sampling import Sampling
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, device_of, measuring
from featherweight.kernels.reference.decode_choice import cut_logits
from featherweight.kv_cache import attached, new_cache

INCOMPLETE = "\ufffd"  # how a tokenizer decodes bytes that are not yet a whole character


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    cache: Any = None,
    tally: Tally | None = None,
) -> Iterator[str]:
    """Pieces of text as they are generated, token by token through a key-value cache; together they are the continuation.

    A piece is held back until its bytes are whole characters. Generation ends at an end-of-text token, which is not
    part of the text, or after `max_new_tokens`.

    Args:
        model: a transformers causal model.
        tokenizer: its tokenizer.
        prompt: text, tokenised with the tokenizer's own special tokens.
        max_new_tokens: at most so many.
        temperature, top_k, top_p: see `Sampling`; at temperature 0 the most likely token is taken.
        seed: of the draw's own generator, on the CPU; no global state is read or changed.
        cache: an empty transformers cache to fill, such as one of our codecs; None for the one attached to the model, or else
            the model's own.
        tally: where the times and the cache are noted.

    Raises:
        FeatherweightError: an empty prompt, settings that mean nothing, more tokens than the model's context, or
            logits that are not finite.
    """
    prompt_ids = tokenizer(prompt, verbose=False)["input_ids"]
    sampling = Sampling(temperature, top_k, top_p)
    check_request(model, len(prompt_ids), max_new_tokens)
    tally = Tally() if tally is None else tally
    tally.cache = new_cache(model) if cache is None else cache
    generator = torch.Generator("cpu").manual_seed(seed)
    decoder = Decoder(tokenizer, prompt_ids)
    for token in generate_tokens(model, prompt_ids, max_new_tokens, sampling, generator, end_tokens(model, tokenizer), tally):
        piece = decoder.add(token)
        if piece:
            yield piece
    rest = decoder.rest()
    if rest:
        yield rest


@dataclass
class Tally:
    """What a generation took; several in a row add up.

    Attributes:
        cache: keys and values; filled as the tokens come, the next call goes on from there.
        prompt_tokens, tokens: read, and made.
        prompt_seconds: until the first token, all prompts.
        seconds: of the tokens after the first of each prompt.
        steps: how many these were.
        path: whose step made the tokens, "transformers" or, replayed as CUDA graphs, "fused".
        note: why on a GPU it was not the fused one.
    """

    cache: Any = None
    prompt_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    path: str = "transformers"
    note: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None where no token followed a first."""
        return self.steps / self.seconds if self.steps else None

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form; of a compressed cache also what it holds."""
        told = {name: value for name, value in vars(self).items() if name != "cache"}
        cache = getattr(self.cache, "compressed", self.cache)  # a runner has one if codecs are attached
        cache = cache.as_dict() if hasattr(cache, "exact_nbytes") else None
        return {**told, "tokens_per_second": self.tokens_per_second, "cache": cache}


def generate_tokens(
    model: Any, ids: list[int], count: int, sampling: Sampling, generator: torch.Generator, ends: frozenset[int], tally: Tally
) -> Iterator[int]:
    """At most `count` tokens that follow `ids`, which follow what `tally.cache` holds; ends before a token of `ends`.

    On a GPU a model that our own step runs is decoded by it, each token handed out while the next is made; `tally.cache` is then
    a `Runner`. Draws are made on the device, from a seed that `generator` draws.
    """
    fresh = torch.tensor([ids], dtype=torch.int64, device=device_of(model))
    tally.prompt_tokens += len(ids)
    started = perf_counter()
    with measuring(model):
        runner = _runner(model, fresh, count, tally, sampling, generator)
    if runner is not None:
        yield from _replayed(runner, count, ends, tally, started)
        return
    for step in range(count):
        started = perf_counter()
        with measuring(model):
            output = model(input_ids=fresh, past_key_values=tally.cache, use_cache=True)
            chosen = _choose(output.logits[0, -1].float().cpu(), sampling, generator, step)
        tally.cache = output.past_key_values
        if step:
            tally.seconds += perf_counter() - started
            tally.steps += 1
        else:
            tally.prompt_seconds += perf_counter() - started
        if chosen in ends:
            return
        tally.tokens += 1
        yield chosen
        fresh = torch.tensor([[chosen]], dtype=torch.int64, device=fresh.device)


def _runner(
    model: Any, fresh: Tensor, count: int, tally: Tally, sampling: Sampling, generator: torch.Generator
) -> Runner | None:
    """The runner that has read `fresh` and chosen what follows; None where transformers' own step has to run."""
    if fresh.device.type != "cuda" or not (
        tally.cache is None or isinstance(tally.cache, Runner) or _untouched(tally.cache, model)
    ):
        return None
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator)) if sampling.temperature > 0 else 0
    if isinstance(tally.cache, Runner):
        runner = tally.cache
        runner.grow(runner.get_seq_length() + fresh.shape[1] + count)
        runner.sample(sampling, seed)
        runner.read(fresh)
        return runner
    opened, tally.note = open_runner(model, fresh, fresh.shape[1] + count, sampling=sampling, seed=seed)
    if opened is not None:
        tally.cache, tally.path = opened, "fused"
    return opened


def _untouched(cache: Any, model: Any) -> bool:
    """Whether a cache is an empty one in the model's own codecs, in whose place a runner can make its own."""
    known = attached(model)
    return known is not None and getattr(cache, "settings", None) == known.settings and cache.get_seq_length() == 0


def _replayed(runner: Runner, count: int, ends: frozenset[int], tally: Tally, started: float) -> Iterator[int]:
    """The runner's tokens; a second counts from one token to the next, whatever is done with the token meanwhile."""
    for number, (chosen,) in enumerate(runner.tokens(count)):
        passed, started = perf_counter() - started, perf_counter()
        if number:
            tally.seconds += passed
            tally.steps += 1
        else:
            tally.prompt_seconds += passed
        if chosen in ends:
            return
        tally.tokens += 1
        yield chosen


class Decoder:
    """Text of a growing list of tokens, a piece at a time.

    Decoding a token alone loses its leading space and splits characters of several bytes, so each piece is the
    difference between two decodings that start at the same earlier token.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt)
        self._start = max(0, len(prompt) - 8)  # context enough for spaces and clean-up rules
        self._shown = len(prompt)

    def add(self, token: int) -> str:
        """The text that has become whole with this token; empty while a character is incomplete."""
        self._tokens.append(token)
        piece = self._pending()
        if piece.endswith(INCOMPLETE) or not piece:
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return piece

    def rest(self) -> str:
        """What is left at the end, whole or not."""
        piece = self._pending()
        self._start, self._shown = self._shown, len(self._tokens)
        return piece

    def _pending(self) -> str:
        before = self._decode(self._tokens[self._start : self._shown])
        return self._decode(self._tokens[self._start :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator, step: int) -> int:
    if not bool(torch.isfinite(logits).all()):
        raise FeatherweightError(
            "the logits are not finite",
            found=f"NaN or Inf at generated token {step}",
            expected="finite logits",
            fix="run in float32 or bfloat16; check the compressed weights",
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = cut_logits(logits.double() / sampling.temperature, sampling.top_k, sampling.top_p)
    probabilities = torch.softmax(scores, -1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens at which text ends, by the model's generation settings and the tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


def check_request(model: Any, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise the error of a request that cannot be served; `prompt_tokens` counts what is in the cache already."""
    if prompt_tokens == 0:
        raise FeatherweightError("the prompt is empty", found="0 tokens", expected="some text", fix="give a prompt")
    if max_new_tokens < 1:
        raise FeatherweightError(
            "impossible generation settings", found=f"max_new_tokens {max_new_tokens}", expected="at least 1"
        )
    context = context_of(model)
    if context is not None and prompt_tokens + max_new_tokens > context:
        raise FeatherweightError(
            "prompt and continuation exceed the model's context",
            found=f"{prompt_tokens} + {max_new_tokens} tokens",
            expected=f"at most {context}",
            fix=f"generate at most {context - prompt_tokens} tokens" if prompt_tokens < context else "shorten the prompt",
        )
