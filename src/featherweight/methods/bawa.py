"""BaWA-style pruning: weights balanced by the norms of their input and output, exponents tuned on the block's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.scores import balanced
from featherweight.methods.base import Problem, Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.scored import Scored

#: Exponents that every search begins with: Wanda's ranking, and the relative one.
STARTS = ((0.0, 0.0, 1.0), (1.0, 1.0, 0.5))

#: Exponents stay between 0 and this; SPSA moves them by this much to look, and by this much at most at the first step.
LARGEST, LOOK, MOVE = 2.0, 0.1, 0.2


@dataclass(frozen=True)
class Exponents:
    """What was found for one linear.

    Attributes:
        values: θ₁, θ₂, θ₃ of `balanced`.
        facts: for the ledger.
    """

    values: tuple[float, float, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class BaWA(Scored):
    """Drop by `(|w_ij| / ‖w_:j‖₂^θ₁ + |w_ij| / ‖w_i:‖₂^θ₂) · (√E[x_j²])^θ₃`, with θ of every linear tuned for its block.

    BaWA-style: written from the published description; the authors' code was not found, so details may differ. θ is moved
    by simultaneous perturbation (SPSA): two forward passes a step, no gradients, for all linears of a block together.
    The best θ seen is taken, Wanda's `(0, 0, 1)` and the relative `(1, 1, 0.5)` among them, so that the mask is never worse
    than theirs on the batches it looks at.

    Attributes:
        steps: of the search; 0 takes the better start.
        batches: calibration batches it looks at, the first ones.

    Raises:
        FeatherweightError: a negative count; what `Scored` refuses.
    """

    name: ClassVar[str] = "bawa"
    summary: ClassVar[str] = "BaWA-style: drop by balanced weight times activation, exponents tuned without gradients"
    source: ClassVar[str] = "after BaWA: Automatic Optimizing Pruning Metric for LLMs with Balanced Weight and Activation, 2025"
    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq"})
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    pattern: str = "row"
    steps: int = 20
    batches: int = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.refuse_block("bawa's exponents make the scores of each linear differ in scale")
        if self.steps < 0 or self.batches < 1:
            raise FeatherweightError(
                "bawa cannot search so", found=f"steps {self.steps}, batches {self.batches}",
                expected="0 steps or more, 1 batch or more", fix="leave them out for 20 and 2",
            )  # fmt: skip

    @property
    def tunes(self) -> bool:
        """The exponents are tuned on the block's outputs."""
        return True

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """See the class."""
        return balanced(values, problem.input_rms(self.name, "magnitude"), problem.settings[name].values)

    @torch.no_grad()
    def tune(self, run: BlockRun) -> dict[str, Exponents]:
        """The best exponents seen, by linear."""
        names = list(run.weights)
        generator = torch.Generator().manual_seed(run.seed)
        seen: list[tuple[float, Tensor]] = []

        def loss(exponents: Tensor) -> float:
            overrides = {name: self._pruned(run, name, each) for name, each in zip(names, exponents.tolist(), strict=True)}
            chosen = range(min(self.batches, run.batches))
            found = sum(float(run.loss(batch, overrides)) for batch in chosen) / len(chosen)
            seen.append((found, exponents))
            return found

        starts = [torch.tensor([start] * len(names)) for start in STARTS]
        losses = [loss(start) for start in starts]
        exponents = starts[losses.index(min(losses))]
        for step in range(self.steps):
            direction = torch.randint(0, 2, exponents.shape, generator=generator) * 2.0 - 1
            above, below = (loss((exponents + sign * LOOK * direction).clamp(0, LARGEST)) for sign in (1, -1))
            slope = (above - below) / max(min(losses), 1e-12) / (2 * LOOK)
            move = MOVE / (1 + step) ** 0.5 * max(-1.0, min(1.0, slope))
            exponents = (exponents - move * direction).clamp(0, LARGEST)
        loss(exponents)
        best, found = min(((value, each) for value, each in seen if value == value), key=lambda pair: pair[0])
        facts = {"block_loss": best, "block_loss_wanda": losses[0], "solver": "spsa"}
        return {
            name: Exponents((each[0], each[1], each[2]), {**facts, "exponents": each})
            for name, each in zip(names, found.tolist(), strict=True)
        }

    def _pruned(self, run: BlockRun, name: str, exponents: list[float]) -> Tensor:
        values = run.current[name].dequantize().to(run.weights[name].device)
        rms = run.statistics[name].mean_sum_sq().sqrt().to(values.device, torch.float32)
        scores = balanced(values, rms, (exponents[0], exponents[1], exponents[2]))
        return values.masked_fill(self._pattern().dropped(scores), 0.0)
