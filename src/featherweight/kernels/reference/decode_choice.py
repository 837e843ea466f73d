"""The next token from a step's logits, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.decoding import Chosen


def choose_token(logits: Tensor, chosen: Chosen, by: tuple[bool, bool] = (False, False)) -> None:
    """The largest logit of every row of `logits [batch, vocabulary]`, or a draw from `softmax(logits / temperature)`.

    Writes `token`, the `history` one place after `position`, and moves `position` on by one. A draw depends on the seed and the
    position alone.

    Args:
        by: whether draws are cut by `chosen.top_k`, and by `chosen.top_p`; see `cut_logits`.
    """
    here, heat = int(chosen.position) + 1, float(chosen.temperature)
    token = logits.argmax(-1)
    if heat > 0:
        generator = torch.Generator("cpu").manual_seed(1_000_003 * int(chosen.seed) + here)
        scores = logits.double().nan_to_num() / heat
        scores = cut_logits(scores, int(chosen.top_k) if by[0] else 0, float(chosen.top_p) if by[1] else 1.0)
        probabilities = torch.softmax(scores, -1).cpu()
        token = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
    chosen.token.copy_(token)
    chosen.history[:, here] = torch.where(torch.isfinite(logits).all(-1), token, -1).to(chosen.history)
    chosen.position.fill_(here)


def cut_logits(scores: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """`scores [..., vocabulary]` with −inf where fewer are kept: transformers' `top_k`, then its `top_p` (Holtzman et al. 2020).

    The k largest are kept, with all that equal the smallest of them; then those before which, by falling score, the kept ones
    have less than p of the mass. 0 and 1 cut nothing.
    """
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered = scores.sort(dim=-1, descending=True).values
        masses = torch.softmax(ordered, -1)
        kept = masses.cumsum(-1) - masses < top_p
        smallest = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    return scores
