"""Pruning ratios learned on a block's outputs, under an exact budget for the whole block: what BESA and PQP share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.methods.clipping import Clip, Clipper, finite
from featherweight.packed.masked import Masked
from featherweight.solvers.allocation import SoftMask, candidates, project_counts, ranks, tilted_logits

#: With sigmoid smoothing no candidate outweighs another by more than e: ratios stay between these (BESA's published setting).
SMOOTH_RANGE = (0.376, 0.624)


@dataclass(frozen=True)
class Allocation:
    """What was learned of one linear.

    Attributes:
        counts: weights that each row loses, `[out]` int64.
        facts: for the ledger: block losses of the learned and of the even ratios, steps, why learning ended early.
        clip: logits of the ranges on which what is kept is rounded; None for no clipping, or no rounding.
    """

    counts: Tensor
    facts: Mapping[str, Any]
    clip: Tensor | None = None


@dataclass(frozen=True)
class Learned(Method):
    """Minimise the block's output error over how many weights each row (or linear) loses, the least scores first.

    Candidate ratios 0, 0.01, …, 1 get probabilities `β = softmax(σ(θ))`, or `softmax(θ)`; θ is learned by gradient steps
    through soft masks (`SoftMask`) on `loss + sparsity_weight · ((ā − ratio) / ratio)²`, one step a calibration batch.
    Afterwards counts are projected so that the block loses exactly `⌊n · ratio⌋` of each linear's n weights in sum. Of what
    was learned and the even ratios, the one with the smaller loss on all calibration batches is taken: learning never hurts
    there. The originals end near their target and write that. A method with `rounding` learns the ranges of its grids in the
    same steps, `W̃ = Q(W) ⊙ M`.

    Attributes:
        ratio: fraction of the block's weights that goes.
        granularity: "row" learns a ratio for each output, "layer" one for each linear.
        smoothing: "sigmoid" (σ above), which confines ratios to 0.376 to 0.624; "none"; "auto" takes the sigmoid for targets
            within 0.05 of one half.
        epochs: passes over the calibration batches; 0 keeps even ratios (the score alone).
        optimizer: "adam", or "prodigy" (Mishchenko and Defazio 2023, arXiv:2306.06101), which sets its step itself.
        learning_rate: of the logits; None for 1 with prodigy, else 0.5 beneath the sigmoid and 0.1 without.
        sparsity_weight: of the penalty on the mean ratio.

    Raises:
        FeatherweightError: a setting outside these, or prodigy without its package.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq"})

    ratio: float = 0.5
    granularity: Literal["row", "layer"] = "row"
    smoothing: Literal["auto", "sigmoid", "none"] = "auto"
    epochs: int = 1
    optimizer: Literal["adam", "prodigy"] = "adam"
    learning_rate: float | None = None
    sparsity_weight: float = 5.0

    def __post_init__(self) -> None:
        """Check the settings."""
        Pattern.parse("layer", self.ratio)
        low, high = SMOOTH_RANGE
        if self.ratio == 0:
            raise FeatherweightError(
                f"{self.name} has nothing to drop", found="ratio 0", expected="a ratio above 0", fix="use ratio: 0.5"
            )
        if self.smoothing == "sigmoid" and not low < self.ratio < high:
            raise FeatherweightError(
                "sigmoid smoothing cannot reach this ratio", found=self.ratio, expected=f"more than {low}, less than {high}",
                fix="use smoothing: none, or leave it out",
            )  # fmt: skip
        if self.epochs < 0 or not (self.learning_rate is None or self.learning_rate > 0):
            raise FeatherweightError(
                f"{self.name} cannot learn so", found=f"epochs {self.epochs}, learning_rate {self.learning_rate}",
                expected="0 epochs or more, a rate above 0",
            )  # fmt: skip
        if self.optimizer == "prodigy" and find_spec("prodigyopt") is None:
            raise FeatherweightError(
                "the optimizer prodigy is not installed", expected="the package prodigyopt",
                fix="pip install 'featherweight[learn]', or use optimizer: adam",
            )  # fmt: skip

    @property
    def budget(self) -> Literal["linear", "block"]:
        """Of the block: rows and linears trade weights."""
        return "block"

    @property
    def tunes(self) -> bool:
        """It learns on the block's outputs."""
        return True

    @abstractmethod
    def score(self, weight: Tensor, values: Tensor, rms: Tensor) -> Tensor:
        """Scores `[out, in]` from the original `weight`, the current `values` and `√E[x_j²] [in]`."""

    def extra_loss(self, run: BlockRun, batch: int, keep: Mapping[str, Tensor]) -> Tensor | float:
        """What else to minimise, given the soft keep masks `[out, in]` by linear."""
        return 0.0

    def rounding(self) -> Clip | None:
        """How what is kept is rounded in this same step; None leaves it as it is."""
        return None

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The values of `current`, rounded if the method does that, beneath a mask with an even share of the block's budget.

        Raises:
            FeatherweightError: `current` is masked already, or cannot hold a mask.
        """
        if current["kind"] == "masked":
            raise FeatherweightError(
                f"{self.name} drops from weights that are all there", found="a step before dropped some",
                expected="one step that prunes", fix="remove one of them",
            )  # fmt: skip
        rows, inputs = current["shape"]
        rounding = self.rounding()
        values = current if rounding is None else rounding.storage(current, dtype)
        return Masked.describe(values, self._pattern().kept((rows, inputs)))

    def tune(self, run: BlockRun) -> dict[str, Allocation]:
        """Learn the ratios of every linear of the block together.

        Raises:
            FeatherweightError: a block that returns no gradients.
        """
        values = {name: current.dequantize().to(run.weights[name].device) for name, current in run.current.items()}
        masks = {name: SoftMask.of(self._scores(name, run, values[name])) for name in values}
        rounding = self.rounding()
        clipper = None if rounding is None else rounding.clipper(values)
        with torch.enable_grad():
            logits, facts = self._learn(run, values, masks, clipper)
        learned = self._projected(values, [self._ratios(each) for each in logits.values()])
        even = self._projected(values, [torch.full_like(logits[name][:, 0], self.ratio) for name in values])
        clip = None if clipper is None else clipper.learned()
        tried = (
            [(learned, clip), (even, None)] if clip is None else [(learned, clip), (learned, None), (even, clip), (even, None)]
        )
        losses = []
        for counts, ends in tried:
            rounded = values if clipper is None else clipper.decoded(ends)
            kept = {name: masks[name].rank >= counts[name].to(each.device)[:, None] for name, each in values.items()}
            losses.append(run.mean_loss({name: each * kept[name] for name, each in rounded.items()}))
        best = min(range(len(tried)), key=lambda index: losses[index] if losses[index] == losses[index] else float("inf"))
        counts, ends = tried[best] if losses[best] < losses[-1] else tried[-1]
        facts |= {"block_loss": min(losses[best], losses[-1]), "block_loss_even": losses[-1]}
        facts |= {"solver": "learned" if counts is learned else "even"}
        facts |= {} if clip is None else {"clipped": ends is not None}
        return {name: Allocation(counts[name], facts, None if ends is None else ends[name]) for name in values}

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Drop as many of each row as was learned.

        Raises:
            FeatherweightError: nothing was learned, since there was no calibration.
        """
        compressed = {}
        rms = problem.input_rms(self.name, "magnitude")
        rounding = self.rounding()
        for name, current in problem.current.items():
            allocation, values = problem.settings[name], current.dequantize()
            rank = ranks(self.score(problem.weights[name], values, rms))
            kept = rank >= allocation.counts.to(rank.device)[:, None]
            leaf = current
            if rounding is not None:
                rounding.check_groups(current.shape, name)
                leaf = rounding.pack(rounding.ranges(values).solve(allocation.clip), slice(None), rounding.integers())
            described = Masked.describe(leaf.description(), int(kept.sum()))
            ratios = allocation.counts.double() / kept.shape[1]
            facts = {**allocation.facts, "ratio_lowest": float(ratios.min()), "ratio_highest": float(ratios.max())}
            compressed[name] = Compressed(Masked.of(leaf, kept, described), facts)
        return compressed

    def _learn(
        self, run: BlockRun, values: Mapping[str, Tensor], masks: Mapping[str, SoftMask], clipper: Clipper | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Logits by linear after the last finite step, and how it went; the clipper's are learned in place."""
        logits = {}
        for name, weight in values.items():
            rows = len(weight) if self.granularity == "row" else 1
            logits[name] = tilted_logits(0.5 if self._smooth() else self.ratio, rows, weight.device).requires_grad_()
        optimizers = [self._optimizer(list(logits.values()))]
        rounding = self.rounding()
        if clipper is not None and rounding is not None:
            optimizers.append(rounding.optimizer(clipper))
        sizes = {name: weight.numel() for name, weight in values.items()}
        steps, ended = 0, ""
        for step in range(self.epochs * run.batches):
            probabilities = {name: self._probabilities(each) for name, each in logits.items()}
            keep = {name: masks[name].keep(probabilities[name]) for name in values}
            rounded = values if clipper is None else clipper.rounded()
            loss = run.loss(step % run.batches, {name: rounded[name] * keep[name] for name in values})
            run.check_gradients(loss, self.name)
            loss = loss + self.extra_loss(run, step % run.batches, keep)
            means = torch.stack([self._ratios(each).mean() * sizes[name] for name, each in logits.items()])
            penalty = (means.sum() / sum(sizes.values()) / self.ratio - 1) ** 2
            for optimizer in optimizers:
                optimizer.zero_grad()
            (loss + self.sparsity_weight * penalty).backward()
            if not finite([loss, *(each.grad for optimizer in optimizers for each in optimizer.param_groups[0]["params"])]):
                ended = f"the loss was not finite at step {step}"
                break
            for optimizer in optimizers:
                optimizer.step()
            steps += 1
        facts = {"learning_steps": steps, **({"learning_ended": ended} if ended else {})}
        return {name: each.detach() for name, each in logits.items()}, facts

    def _projected(self, values: Mapping[str, Tensor], ratios: list[Tensor]) -> dict[str, Tensor]:
        rows = [each.expand(len(weight)) for each, weight in zip(ratios, values.values(), strict=True)]
        inputs = [weight.shape[1] for weight in values.values()]
        budgets = [weight.numel() - self._pattern().kept((len(weight), weight.shape[1])) for weight in values.values()]
        return dict(zip(values, project_counts(rows, inputs, budgets), strict=True))

    def _scores(self, name: str, run: BlockRun, values: Tensor) -> Tensor:
        rms = run.statistics[name].mean_sum_sq().sqrt().to(values.device, torch.float32)
        return self.score(run.weights[name], values, rms)

    def _smooth(self) -> bool:
        return self.smoothing == "sigmoid" or (self.smoothing == "auto" and abs(self.ratio - 0.5) <= 0.05)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.sigmoid() if self._smooth() else logits, 1)

    def _ratios(self, logits: Tensor) -> Tensor:
        return self._probabilities(logits) @ candidates(logits.device)

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "prodigy":
            from prodigyopt import Prodigy

            return Prodigy(parameters, lr=self.learning_rate or 1.0)
        return torch.optim.Adam(parameters, lr=self.learning_rate or (0.5 if self._smooth() else 0.1))

    def _pattern(self) -> Pattern:
        return Pattern.parse("layer", self.ratio)
