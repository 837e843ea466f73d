"""How far a model has moved from its reference: KL divergence, agreement, paired loss difference."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.data import Windows
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import CausalModel, Progress, dtype_of, fingerprint, measuring, window_logits
from featherweight.evaluation.perplexity import POSITIONS, token_losses
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.reference import StoredReference
from featherweight.evaluation.summary import mean_with_error, perplexity_with_error


def token_divergence(logits: Tensor, reference: Tensor, *, positions: int = POSITIONS) -> tuple[Tensor, Tensor]:
    """`KL(reference ‖ model) = Σ_v p_ref(v) · (log p_ref(v) − log p_model(v))` in nats, and whether the first choices agree.

    Args:
        logits: of the model, `[T, vocabulary]`.
        reference: of the reference, `[T, vocabulary]`.
        positions: chunk size; the result does not depend on it.

    Returns:
        KL `[T]` float32 and agreement `[T]` bool, on the device of `logits`.

    Raises:
        FeatherweightError: shapes that differ.
    """
    if logits.shape != reference.shape:
        raise FeatherweightError(
            "the model and its reference have different vocabularies",
            found=f"logits {list(logits.shape)}",
            expected=list(reference.shape),
            fix="compare a compressed model with the model it was made from",
        )
    divergence, agreement = [], []
    for start in range(0, logits.shape[0], positions):
        ours = logits[start : start + positions].float()
        theirs = reference[start : start + positions].to(logits.device).float()
        agreement.append(ours.argmax(-1) == theirs.argmax(-1))
        log_ours, log_theirs = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
        divergence.append((log_theirs.exp() * (log_theirs - log_ours)).sum(-1))
    return torch.cat(divergence), torch.cat(agreement)


def compare(
    model: CausalModel,
    reference: CausalModel | StoredReference,
    windows: Windows,
    *,
    cache: str = "none",
    progress: Progress | None = None,
) -> list[Measurement]:
    """Both models over the same windows, in one pass, one window's logits in memory at a time.

    All figures are over the length − 1 positions of a window that predict a token inside it; standard errors are over
    windows, those of differences paired.

    Args:
        model: any callable `model(input_ids=tokens).logits`.
        reference: another, or `StoredReference` where both do not fit in memory.
        windows: from `evaluation_windows`.
        cache: how the model reads keys and values, for the protocol.
        progress: called after each window.

    Returns:
        "kl" (nats per token), "top1_agreement" (0 to 1), "perplexity", "reference_perplexity", "nll_difference"
        (model − reference, nats per token).

    Raises:
        FeatherweightError: logits that are not finite (the window is named), other vocabularies, or a stored reference
            of other windows.
    """
    if isinstance(reference, StoredReference):
        reference.check(windows)
    per_window = torch.empty(len(windows), 4, dtype=torch.float64)  # kl, agreement, loss, loss of the reference
    with measuring(model, reference):
        for index, tokens in enumerate(windows.tokens):
            theirs = _reference_logits(reference, tokens, index)
            ours = window_logits(model, tokens, index)
            divergence, agreement = token_divergence(ours[:-1], theirs[:-1])
            losses = token_losses(ours, tokens), token_losses(theirs, tokens)
            figures = (divergence, agreement, *losses)
            per_window[index] = torch.stack([figure.double().mean().cpu() for figure in figures])
            if progress is not None:
                progress(index + 1, len(windows))
    return _measurements(per_window, _protocols(model, reference, windows, cache))


def _reference_logits(reference: CausalModel | StoredReference, tokens: Tensor, index: int) -> Tensor:
    if isinstance(reference, StoredReference):
        return reference.logits(index)
    return window_logits(reference, tokens, index, "the reference")


def _protocols(
    model: CausalModel, reference: CausalModel | StoredReference, windows: Windows, cache: str
) -> tuple[Protocol, Protocol, Protocol]:
    """Of the comparison, of the model alone, of the reference alone."""
    if isinstance(reference, StoredReference):
        against, dtype = reference.fingerprint, reference.dtype
    else:
        against, dtype = fingerprint(reference), dtype_of(reference)
    alone = Protocol.of(windows, dtype=dtype_of(model), cache=cache)
    return alone.against_model(against), alone, Protocol.of(windows, dtype=dtype)


def _measurements(per_window: Tensor, protocols: tuple[Protocol, Protocol, Protocol]) -> list[Measurement]:
    compared, alone, reference = protocols
    divergence, agreement, ours, theirs = per_window.unbind(1)
    return [
        Measurement("kl", *mean_with_error(divergence), compared),
        Measurement("top1_agreement", *mean_with_error(agreement), compared),
        Measurement("perplexity", *perplexity_with_error(ours), alone),
        Measurement("reference_perplexity", *perplexity_with_error(theirs), reference),
        Measurement("nll_difference", *mean_with_error(ours - theirs), compared),
    ]
