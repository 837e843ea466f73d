"""Perplexity over windows."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.data import Windows
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import CausalModel, Progress, dtype_of, measuring, window_logits
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.summary import perplexity_with_error

POSITIONS = 256  # scored at once: 48 MiB of float32 at a vocabulary of 49152


def token_losses(logits: Tensor, tokens: Tensor, *, positions: int = POSITIONS) -> Tensor:
    """Cross entropy of each next token, `−log p(tokens[t + 1] | tokens[: t + 1])`, in nats.

    Computed in float32, `positions` at a time, so that no second copy of the logits is made.

    Args:
        logits: `[T, vocabulary]`.
        tokens: `[T]` int64.
        positions: chunk size; the result does not depend on it.

    Returns:
        `[T − 1]` float32, on the logits' device.

    Raises:
        FeatherweightError: shapes that do not belong together, or a single token.
    """
    if logits.dim() != 2 or tokens.dim() != 1 or logits.shape[0] != tokens.shape[0] or tokens.shape[0] < 2:
        raise FeatherweightError(
            "logits and tokens do not belong together",
            found=f"logits {list(logits.shape)}, tokens {list(tokens.shape)}",
            expected="[T, vocabulary] and [T], T at least 2",
        )
    targets = tokens[1:].to(logits.device)
    parts = []
    for start in range(0, targets.shape[0], positions):
        chunk = logits[start : min(start + positions, targets.shape[0])].float()
        chosen = chunk.gather(-1, targets[start : start + positions, None]).squeeze(-1)
        parts.append(torch.logsumexp(chunk, -1) - chosen)
    return torch.cat(parts)


def window_losses(model: CausalModel, windows: Windows, *, progress: Progress | None = None) -> Tensor:
    """Mean loss of each window, `[windows]` float64 in nats, over its length − 1 predictions.

    Raises:
        FeatherweightError: logits that are not finite, with the window's number.
    """
    losses = torch.empty(len(windows), dtype=torch.float64)
    with measuring(model):
        for index, tokens in enumerate(windows.tokens):
            logits = window_logits(model, tokens, index)
            losses[index] = token_losses(logits, tokens).double().mean().cpu()
            if progress is not None:
                progress(index + 1, len(windows))
    return losses


def perplexity(model: CausalModel, windows: Windows, *, cache: str = "none", progress: Progress | None = None) -> Measurement:
    """`PPL = exp(mean over windows of the mean loss of its length − 1 predictions)`, specification §9.1.

    Args:
        model: any callable `model(input_ids=tokens).logits`.
        windows: from `evaluation_windows`.
        cache: how the model reads keys and values, for the protocol; "none" is one forward per window.
        progress: called after each window.

    Returns:
        The measurement "perplexity"; its standard error over windows by the delta method.

    Raises:
        FeatherweightError: logits that are not finite, with the window's number.

    Source: the evaluation loops of GPTQ (which sums `nll · length` over `N · length`: the same number).
    """
    value, error = perplexity_with_error(window_losses(model, windows, progress=progress))
    return Measurement("perplexity", value, error, Protocol.of(windows, dtype=dtype_of(model), cache=cache))
