"""JSQ's pruning score: weights whose going would leave a wide range of outputs stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.scores import output_range, wanda
from featherweight.methods.base import Problem, Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.scored import Scored
from featherweight.statistics.inputs import InputStatistics

#: Fractions of the largest activations that a search tries to clip, and the calibration batches it looks at.
CLIPS, BATCHES = (0.0, 0.001, 0.005, 0.01, 0.02), 2

#: Tokens of the windows for which ρ was published: `√Σ x²` over a window grows with its root.
PUBLISHED_LENGTH = 2048


@dataclass(frozen=True)
class Clip:
    """What was found for one linear: the `share` of its largest activations to clip, and `facts` for the ledger."""

    share: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class JSQ(Scored):
    """Drop the weights of smallest `|w_ij| √a_j + ρ · range_ij`, `range` being what the output spans once the weight is gone.

    For the score alone activations are clipped at their largest `clip` share. `a_j` is the sum of squares over a window of
    2048 tokens, for which ρ was published, whatever the windows' length here; `range` is taken over the windows' mean input at
    64 evenly spaced tokens (the original: at all 2048). The original keeps only the last sample's maxima for its smoothing;
    nothing here depends on that.

    Attributes:
        sensitivity: ρ.
        clip: share of each linear's largest activations that the score clips; None searches 0 to 0.02, linear by linear, for
            the smallest error of the block's output.

    Raises:
        FeatherweightError: a setting out of range; what `Scored` refuses.
    """

    name: ClassVar[str] = "jsq"
    summary: ClassVar[str] = "drop by size times activation, sparing weights that keep the range of outputs narrow"
    source: ClassVar[str] = "Guo et al. 2024, Compressing large language models by joint sparsification and quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq", "samples"})
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    pattern: str = "row"
    sensitivity: float = 2.1
    clip: float | None = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.sensitivity >= 0 or not (self.clip is None or 0 <= self.clip < 1):
            raise FeatherweightError(
                "jsq cannot score so", found=f"sensitivity {self.sensitivity}, clip {self.clip}",
                expected="sensitivity 0 or more, clip of at least 0 and less than 1, or null to search",
                fix="leave them out for 2.1 and 0.01",
            )  # fmt: skip
        if self.clip is None:
            self.refuse_block("jsq searches its clip linear by linear")

    @property
    def tunes(self) -> bool:
        """Where the clip is searched, or the block's linears compete."""
        return self.clip is None or super().tunes

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """See the class."""
        found = problem.settings.get(name)
        clip = found.share if isinstance(found, Clip) else self.clip
        return self._scores(values, problem.calibrated("activations", self.name, "magnitude"), clip or 0.0)

    @torch.no_grad()
    def tune(self, run: BlockRun) -> Mapping[str, Any]:
        """The best clip of each linear, the ones before it at theirs; or what each loses of the block."""
        if self.clip is not None:
            return super().tune(run)
        batches = range(min(BATCHES, run.batches))
        values = {name: current.dequantize().to(run.weights[name].device) for name, current in run.current.items()}

        def pruned(name: str, clip: float) -> Tensor:
            return values[name].masked_fill(
                self._pattern().dropped(self._scores(values[name], run.statistics[name], clip)), 0.0
            )

        overrides = {name: pruned(name, CLIPS[3]) for name in values}
        found = {}
        for name in values:
            losses = {}
            for clip in CLIPS:
                tried = {**overrides, name: pruned(name, clip)}
                losses[clip] = sum(float(run.loss(batch, tried)) for batch in batches) / len(batches)
            best = min(CLIPS, key=lambda clip: losses[clip])
            overrides[name] = pruned(name, best)
            found[name] = Clip(best, {"clip": best, "block_loss": losses[best]})
        return found

    def _scores(self, values: Tensor, statistics: InputStatistics, clip: float) -> Tensor:
        assert statistics.samples is not None  # it is in `needs`
        samples = statistics.samples.to(values.device, torch.float32)
        most = int(clip * samples.numel())
        if most:
            limit = samples.abs().flatten().topk(most).values[-1]
            samples = samples.clamp(-limit, limit)
        rms = samples.square().mean((0, 1)).sqrt() * PUBLISHED_LENGTH**0.5
        return wanda(values, rms) + self.sensitivity * output_range(values, samples.mean(0))
