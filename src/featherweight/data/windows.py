"""Windows of token ids: random ones to calibrate on, non-overlapping ones to measure with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featherweight.data.corpus import Corpus, tokens_sha256
from featherweight.data.encoding import bos_rule, check_vocabulary, document_count, encode_document, encode_joined, may_exceed
from featherweight.errors import FeatherweightError

EVALUATION_SEED = 0  # of C4's published crops


@dataclass(frozen=True, eq=False)
class Windows:
    """Token ids and where they came from.

    Attributes:
        tokens: `[windows, length]` int64, on the CPU.
        description: corpus, its sha256, rule, joining, variant, BOS, counts and seed; plain values, ready for JSON.
        sha256: hash of `tokens`; whatever is computed from these windows depends on it.
    """

    tokens: Tensor
    description: dict[str, Any]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Check the shape and take the hash."""
        if self.tokens.dim() != 2 or self.tokens.dtype != torch.int64 or self.tokens.numel() == 0:
            raise FeatherweightError(
                "windows must be rows of token ids",
                found=f"{self.tokens.dtype} {list(self.tokens.shape)}",
                expected="int64 [n, length]",
            )
        object.__setattr__(self, "sha256", tokens_sha256(self.tokens))

    def __len__(self) -> int:
        """Number of windows."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Tokens per window."""
        return self.tokens.shape[1]


def calibration_windows(corpus: Corpus, tokenizer: Any, *, samples: int, length: int, seed: int) -> Windows:
    """`samples` windows of `length` tokens, drawn as the published methods draw them.

    Rule "documents" (C4): pick a random document until one is longer than `length`, crop it at random. Where documents
    are too short, or hold so little that crops would repeat, the joined rule is used instead and `description["fallback"]`
    says so; a published corpus falls back only if no document is long enough. Rule "joined" (WikiText-2, PTB): tokenise
    the joined text once, take windows at random. Pre-tokenised samples are taken in order and truncated to `length`;
    a single one is a joined row. The same draws in the same order as the authors' loaders for an equal seed.

    Args:
        corpus: what to draw from, split "calibration".
        tokenizer: a transformers tokenizer; its special tokens are added as it is configured to.
        samples: number of windows.
        length: tokens per window.
        seed: of a generator of our own; no global state is read or changed.

    Returns:
        Windows, tokens `[samples, length]`.

    Raises:
        FeatherweightError: fewer tokens than one window, too few pre-tokenised samples, ids outside the vocabulary,
            chats without a chat template.

    Source: `datautils.py` of GPTQ and `data.py` of Wanda.
    """
    _check_counts(samples, length)
    generator = random.Random(seed)
    if corpus.samples and corpus.rule == "documents":
        tokens = torch.stack(_leading_samples(corpus, samples, length))
        check_vocabulary(tokens, tokenizer, corpus.name)
        return Windows(tokens, _description(corpus, tokenizer, tokens, rule="documents", seed=None))
    crops, fallback = None, None
    if corpus.rule == "documents":
        crops, fallback = _document_crops(corpus, tokenizer, samples, length, generator)
    if crops is not None:
        return Windows(crops, _description(corpus, tokenizer, crops, rule="documents", seed=seed))
    row = encode_joined(corpus, tokenizer)
    _check_enough(corpus, row, length)
    last = row.numel() - length - 1
    starts = [generator.randint(0, last) if last >= 0 else 0 for _ in range(samples)]
    tokens = torch.stack([row[start : start + length] for start in starts])
    return Windows(
        tokens, _description(corpus, tokenizer, tokens, rule="joined", seed=seed, corpus_tokens=row.numel(), fallback=fallback)
    )


def evaluation_windows(corpus: Corpus, tokenizer: Any, *, length: int, windows: int | None = None) -> Windows:
    """Non-overlapping windows of the text tokenised once as one long row: `N = len // length`, the tail dropped.

    A BOS token, if the tokenizer adds one, stands in the first window only. C4 in its standard variant is crops of
    long documents instead (seed 0), at most 256 of them; its new variant stops at 256 windows.

    Args:
        corpus: what to measure on, split "evaluation".
        tokenizer: a transformers tokenizer.
        length: tokens per window, the context.
        windows: use the first so many only; None for all.

    Returns:
        Windows, tokens `[N, length]`.

    Raises:
        FeatherweightError: fewer tokens than one window, fewer windows than asked for, ids outside the vocabulary.

    Source: the evaluation loops of GPTQ and Wanda.
    """
    _check_counts(1 if windows is None else windows, length)
    most = corpus.maximum_windows
    if corpus.rule == "documents":
        wanted = windows or most or document_count(corpus)
        _check_offered(corpus.name, wanted, most or wanted, "its published protocol")
        crops, _ = _document_crops(corpus, tokenizer, wanted, length, random.Random(EVALUATION_SEED))
        if crops is not None:
            return Windows(crops, _description(corpus, tokenizer, crops, rule="documents", seed=EVALUATION_SEED))
        raise FeatherweightError(
            f"no document of {corpus.name} is longer than a window",
            found=f"{len(corpus.documents)} documents",
            expected=f"one of more than {length} tokens",
            fix="use a shorter window, or variant 'new', which joins the documents",
        )
    row = encode_joined(corpus, tokenizer)
    _check_enough(corpus, row, length)
    count = min(row.numel() // length, most or row.numel())
    _check_offered(corpus.name, windows or 1, count, f"{row.numel()} tokens")
    count = windows or count
    tokens = row[: count * length].reshape(count, length).clone()
    return Windows(tokens, _description(corpus, tokenizer, tokens, rule="joined", seed=None, corpus_tokens=row.numel()))


def _check_counts(samples: int, length: int) -> None:
    if samples < 1 or length < 2:
        raise FeatherweightError(
            "windows need a size",
            found=f"{samples} windows of {length} tokens",
            expected="at least 1 window of at least 2 tokens",
        )


def _check_offered(name: str, wanted: int, offered: int, where: str) -> None:
    if wanted > offered:
        raise FeatherweightError(
            f"{name} has fewer windows than asked for",
            found=f"{offered} windows in {where}",
            expected=f"{wanted} windows",
            fix=f"ask for at most {offered} windows, or leave the number out",
        )


def _check_enough(corpus: Corpus, row: Tensor, length: int) -> None:
    if row.numel() < length:
        raise FeatherweightError(
            f"{corpus.name} is shorter than one window",
            found=f"{row.numel()} tokens",
            expected=f"at least {length} tokens",
            fix=f"use windows of at most {row.numel()} tokens, or a longer text",
        )


def _leading_samples(corpus: Corpus, samples: int, length: int) -> list[Tensor]:
    """The first `samples` pre-tokenised samples, truncated to `length`."""
    if len(corpus.samples) < samples:
        raise FeatherweightError(
            f"{corpus.name} holds too few samples",
            found=f"{len(corpus.samples)} samples",
            expected=f"{samples} samples",
            fix=f"ask for at most {len(corpus.samples)} samples",
        )
    taken = corpus.samples[:samples]
    shortest = min(range(samples), key=lambda index: taken[index].numel())
    if taken[shortest].numel() < length:
        raise FeatherweightError(
            f"sample {shortest} of {corpus.name} is shorter than one window",
            found=f"{taken[shortest].numel()} tokens",
            expected=f"at least {length} tokens",
            fix=f"use windows of at most {taken[shortest].numel()} tokens",
        )
    return [sample[:length] for sample in taken]


def _document_crops(
    corpus: Corpus, tokenizer: Any, samples: int, length: int, generator: random.Random
) -> tuple[Tensor | None, str | None]:
    """`(crops [samples, length], None)`, or `(None, why the documents do not do)`."""
    count, known = document_count(corpus), dict[int, Tensor | None]()

    def long_document(index: int) -> Tensor | None:
        if index not in known:
            tokens = encode_document(corpus, tokenizer, index) if may_exceed(corpus, index, length) else None
            known[index] = tokens if tokens is not None and tokens.numel() > length else None
        return known[index]

    if not corpus.strict:
        held = sum(tokens.numel() for index in range(count) if (tokens := long_document(index)) is not None)
        if held < samples * length:
            return None, f"documents of more than {length} tokens hold {held} tokens, fewer than {samples} x {length}"
    crops = [_crop(long_document, count, length, generator, known) for _ in range(samples)]
    whole = [crop for crop in crops if crop is not None]
    if len(whole) < samples:
        return None, f"none of {count} documents is longer than {length} tokens"
    return torch.stack(whole), None


def _crop(
    long_document: Callable[[int], Tensor | None],
    count: int,
    length: int,
    generator: random.Random,
    known: dict[int, Tensor | None],
) -> Tensor | None:
    """One random crop of one random long document; None once every document is known to be too short."""
    while len(known) < count or any(tokens is not None for tokens in known.values()):
        tokens = long_document(generator.randint(0, count - 1))
        if tokens is not None:
            start = generator.randint(0, tokens.numel() - length - 1)
            return tokens[start : start + length]
    return None


def _description(
    corpus: Corpus,
    tokenizer: Any,
    tokens: Tensor,
    *,
    rule: str,
    seed: int | None,
    corpus_tokens: int | None = None,
    fallback: str | None = None,
) -> dict[str, Any]:
    return {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "split": corpus.split,
        "rule": rule,
        "joining": corpus.joining if rule == "joined" else None,
        "variant": corpus.variant,
        "windows": tokens.shape[0],
        "length": tokens.shape[1],
        "seed": seed,
        "corpus_tokens": corpus_tokens,
        "bos": bos_rule(corpus, tokenizer, rule),
        "fallback": fallback,
        "note": corpus.note,
    }
