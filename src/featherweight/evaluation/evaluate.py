"""`evaluate`: from a model and the name of a text to measurements."""

from __future__ import annotations

from typing import Any

from featherweight.data import evaluation_windows, load_corpus
from featherweight.data.corpus import Variant
from featherweight.errors import FeatherweightError
from featherweight.evaluation.divergence import compare
from featherweight.evaluation.forward import CausalModel, Progress, context_of, dtype_of
from featherweight.evaluation.perplexity import perplexity
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.reference import StoredReference
from featherweight.evaluation.through_cache import ThroughCache, cache_label, through_cache
from featherweight.kv_cache import CacheSettings

DEFAULT_LENGTH = 2048  # the context of the published LLaMA-1 tables


def default_length(model: CausalModel) -> int:
    """The published context, 2048, or the model's own where that is shorter."""
    return min(DEFAULT_LENGTH, context_of(model) or DEFAULT_LENGTH)


def evaluate(
    model: CausalModel,
    tokenizer: Any,
    *,
    data: str,
    length: int | None = None,
    windows: int | None = None,
    against: CausalModel | StoredReference | None = None,
    variant: Variant = "standard",
    data_files: str | None = None,
    cache: CacheSettings | None = None,
    stepwise: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Perplexity on a text; with a reference also how far the model has moved from it.

    Args:
        model: any callable `model(input_ids=tokens).logits`.
        tokenizer: the model's.
        data: a corpus name or a file, see `load_corpus`; "heldout" ships with the package.
        length: tokens per window; None for 2048, or the model's context where shorter.
        windows: score the first so many windows only; None for all.
        against: the reference model, or its stored logits.
        variant: "standard" or "new" rules of the published corpora.
        data_files: the file to read in place of a hub name's own.
        cache: how the model, not the reference, stores keys and values; None reads them as they are.
        stepwise: with `cache`, see `ThroughCache`.
        offline: never reach for the network.
        progress: called after each window.

    Returns:
        "perplexity" alone, or what `compare` returns; with a cache also its "key_bits", "value_bits" and "cache_bits".

    Raises:
        FeatherweightError: a window beyond the model's context, or too short for the cache; logits that are not
            finite, and what `load_corpus` and
            `evaluation_windows` raise.
    """
    length = length or default_length(model)
    context = context_of(model)
    if context is not None and length > context:
        raise FeatherweightError(
            "the window is longer than the model's context",
            found=f"{length} tokens",
            expected=f"at most {context} (max_position_embeddings)",
            fix=f"use windows of {context} tokens",
        )
    corpus = load_corpus(data, split="evaluation", offline=offline, variant=variant, data_files=data_files)
    taken = evaluation_windows(corpus, tokenizer, length=length, windows=windows)
    model, label = through_cache(model, cache, stepwise=stepwise), cache_label(cache)
    if against is None:
        measured = [perplexity(model, taken, cache=label, progress=progress)]
    else:
        measured = compare(model, against, taken, cache=label, progress=progress)
    if isinstance(model, ThroughCache):
        return model.measurements(Protocol.of(taken, dtype=dtype_of(model), cache=label)) + measured
    return measured
