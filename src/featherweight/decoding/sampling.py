"""How a token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass

from featherweight.errors import FeatherweightError


@dataclass(frozen=True)
class Sampling:
    """The largest logit, or a draw, as transformers' `temperature`, `top_k` and `top_p` say, in this order.

    Attributes:
        temperature: 0 takes the largest; else tokens are drawn from `softmax(logits / temperature)`.
        top_k: only the k largest are drawn from, and those that equal the smallest of them; 0 for all.
        top_p: only the largest, as many as it takes for this much of the mass; 1 for all.

    Raises:
        FeatherweightError: numbers that mean nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.temperature < float("inf") or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise FeatherweightError(
                "impossible generation settings",
                found=f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}",
                expected="a temperature of 0 (greedy) or more, top_k of 0 (all) or more, top_p above 0 and at most 1 (all)",
            )

    @property
    def cuts(self) -> tuple[bool, bool]:
        """Whether draws are cut by top-k, and by top-p."""
        return self.temperature > 0 and self.top_k > 0, self.temperature > 0 and self.top_p < 1
