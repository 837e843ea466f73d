"""What is minimised: next-token cross entropy, or the divergence from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from featherweight.evaluation.divergence import token_divergence

#: Mean loss a token, in nats, of windows `[batch, length]` on the model's device.
Objective = Callable[[Tensor], Tensor]


def objective(model: Any, teacher: Any | None) -> Objective:
    """The loss of `model` over the positions that predict a token inside their window.

    Args:
        teacher: `KL(teacher ‖ model)` where there is one, else the cross entropy of the next token.
    """

    def language(tokens: Tensor) -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def distillation(tokens: Tensor) -> Tensor:
        assert teacher is not None
        with torch.no_grad():
            theirs = teacher(input_ids=tokens, use_cache=False).logits[:, :-1]
        ours = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return token_divergence(ours.flatten(0, 1), theirs.flatten(0, 1))[0].mean()

    return language if teacher is None else distillation


def measured(loss: Objective, windows: Tensor, batch: int, device: torch.device) -> float:
    """Mean loss over `windows [n, length]`, without gradients."""
    with torch.no_grad():
        sums = [float(loss(part.to(device))) * len(part) for part in windows.split(batch)]
    return sum(sums) / len(windows)
