"""What is minimised: next-token cross entropy, the divergence from a teacher, or the cross entropy of the right answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from featherweight.evaluation.divergence import token_divergence
from featherweight.finetune.examples import choice_loss
from featherweight.finetune.processes import Processes

#: Mean loss in nats, a token of windows `[batch, length]` or an example as `encode` makes it, on the model's device.
Objective = Callable[[Tensor], Tensor]

#: Makes the context in which a forward runs.
Precision = Callable[[], AbstractContextManager[Any]]


def objective(model: Any, teacher: Any | None, *, examples: bool, precision: Precision) -> Objective:
    """The loss of `model`.

    Args:
        teacher: `KL(teacher ‖ model)` over the positions that predict a token, where there is one.
        examples: batches are examples of a task: the loss is that of choosing; else the cross entropy of the next token.
        precision: of forwards.
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

    def choosing(batch: Tensor) -> Tensor:
        return choice_loss(model, batch)

    chosen = choosing if examples else language if teacher is None else distillation

    def loss(batch: Tensor) -> Tensor:
        with precision():
            return chosen(batch)

    return loss


def autocast(device: torch.device, dtype: torch.dtype) -> Precision:
    """Forwards in `dtype`, parameters and their gradients in float32."""
    return lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def measured(loss: Objective, rows: Tensor, batch: int, device: torch.device, processes: Processes) -> float:
    """Mean loss over `rows [n, …]`, without gradients; each process measures its share."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for part in processes.share(rows).split(batch):
            total += loss(part.to(device)).double() * len(part)
    return float(processes.sum(total)) / len(rows)
