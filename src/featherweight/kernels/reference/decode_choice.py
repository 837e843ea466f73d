"""The next token from a step's logits, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.decoding import Chosen


def choose_token(logits: Tensor, chosen: Chosen) -> None:
    """The largest logit of every row of `logits [batch, vocabulary]`, or a draw from `softmax(logits / temperature)`.

    Writes `token`, the `history` one place after `position`, and moves `position` on by one. A draw depends on the seed and the
    position alone.
    """
    here, heat = int(chosen.position) + 1, float(chosen.temperature)
    token = logits.argmax(-1)
    if heat > 0:
        generator = torch.Generator("cpu").manual_seed(1_000_003 * int(chosen.seed) + here)
        probabilities = torch.softmax(logits.double().nan_to_num() / heat, -1).cpu()
        token = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
    chosen.token.copy_(token)
    chosen.history[:, here] = torch.where(torch.isfinite(logits).all(-1), token, -1).to(chosen.history)
    chosen.position.fill_(here)
