"""Learned weight clipping: the ranges of integer grids are learned on the block's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import UniformGrid
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.dropping import better_walked
from featherweight.methods.integers import IntegerMethod
from featherweight.solvers.clipping import Ranges
from featherweight.solvers.damping import Factor, factorise


@dataclass(frozen=True)
class Clipped:
    """What was learned of one linear.

    Attributes:
        logits: of `Ranges`, `[ends, rows, groups]`; None where no clipping was best.
        facts: for the ledger.
    """

    logits: Tensor | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Clipper:
    """Ranges that are being learned, by linear.

    Attributes:
        ranges: of each linear.
        logits: theirs, with gradients.
    """

    ranges: Mapping[str, Ranges]
    logits: Mapping[str, Tensor]

    def rounded(self) -> dict[str, Tensor]:
        """The values on the grids as they are, through which gradients pass, `[out, in]`."""
        return {name: each.rounded(self.logits[name]) for name, each in self.ranges.items()}

    def decoded(self, logits: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The values on the grids of these logits, None for no clipping."""
        return {name: each.solve(None if logits is None else logits[name]).decoded for name, each in self.ranges.items()}

    def learned(self) -> dict[str, Tensor]:
        """The logits as they are."""
        return {name: each.detach().clone() for name, each in self.logits.items()}


@dataclass(frozen=True)
class Clip(IntegerMethod):
    """Round to nearest on grids whose ends are learned: shares `σ(γ) max w` and `σ(β) min w` of every group (or row).

    γ and β, 4 at first, take one step of AdamW a calibration batch on the block's output error, gradients passing straight
    through the rounding; all of it in float32. After every epoch the loss on all batches is looked at, and the best state is
    taken, no clipping at all among them: the block's loss is never above that of `rtn`. A loss that is not finite ends the
    learning there. Weights that a step before dropped stay exactly 0.

    Settings: those of `IntegerMethod` (the range comes from min and max), and

    Attributes:
        epochs: passes over the calibration batches.
        learning_rate: of the logits.
        feedback: round by GPTQ's walk on the learned grids where that has the smaller error on the inputs' Hessian.
        damping: of that walk, as in `gptq`.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "round to nearest, the range of each group learned on the block's output"
    source: ClassVar[str] = "Shao et al. 2023, OmniQuant, arXiv:2308.13137, eq. 2 (learnable weight clipping)"
    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq"})
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits, "group_size": 128},) for bits in (2, 3, 4)}

    epochs: int = 10
    learning_rate: float = 0.01
    feedback: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.fit != "minmax" or self.grid != "integer":
            raise FeatherweightError(
                "clip learns the ranges of integer grids itself", found=f"fit {self.fit}, grid {self.grid}",
                expected="fit minmax, grid integer", fix="leave fit and grid out",
            )  # fmt: skip
        if self.epochs < 1 or not self.learning_rate > 0 or not self.damping >= 0:
            raise FeatherweightError(
                "clip cannot learn so",
                found=f"epochs {self.epochs}, learning_rate {self.learning_rate}, damping {self.damping}",
                expected="1 epoch or more, a rate above 0, damping 0 or more", fix="leave them out for 10, 0.01 and 0.01",
            )  # fmt: skip

    @property
    def requires(self) -> frozenset[str]:
        """The Hessian besides, for the walk."""
        return self.needs | ({"hessian"} if self.feedback else set())

    @property
    def tunes(self) -> bool:
        """The ranges are learned on the block's outputs."""
        return True

    def clipper(self, values: Mapping[str, Tensor]) -> Clipper:
        """Ranges of `values [out, in]` by linear, at the start."""
        ranges = {name: self.ranges(each) for name, each in values.items()}
        return Clipper(ranges, {name: each.start().requires_grad_() for name, each in ranges.items()})

    def integers(self) -> UniformGrid:
        """The grid whose ends are learned."""
        return UniformGrid(self.bits, self.symmetric, scale_dtype=self.grid_over().scale_dtype)

    def ranges(self, values: Tensor) -> Ranges:
        """Those of `values [out, in]`."""
        return Ranges.of(values, self.integers(), self.group_size)

    def tune(self, run: BlockRun) -> dict[str, Clipped]:
        """Learn the ranges of every linear of the block together.

        Raises:
            FeatherweightError: a block that returns no gradients.
        """
        clipper = self.clipper(
            {name: current.dequantize().to(run.weights[name].device) for name, current in run.current.items()}
        )
        unclipped = run.mean_loss(clipper.decoded(None))
        loss, best = unclipped, None
        optimizer, steps, finite = self.optimizer(clipper), 0, True
        for _ in range(self.epochs):
            for batch in range(run.batches):
                finite = self._step(run, batch, clipper, optimizer)
                if not finite:
                    break
                steps += 1
            learned = clipper.learned()
            found = run.mean_loss(clipper.decoded(learned))
            loss, best = (found, learned) if found < loss else (loss, best)
            if not finite:
                break
        facts = {"block_loss": loss, "block_loss_unclipped": unclipped, "learning_steps": steps}
        facts |= {} if finite else {"learning_ended": f"the loss was not finite at step {steps}"}
        return {name: Clipped(None if best is None else best[name], facts) for name in run.current}

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Round the current values of every linear on its learned grid.

        Raises:
            FeatherweightError: groups that do not fit; with `feedback` no Hessian, or one that cannot be factorised.
        """
        compressed = {}
        factor = self._factor(problem) if self.feedback else None
        for name, current in problem.current.items():
            self.check_groups(current.shape, name)
            values, learned = current.dequantize(), problem.settings[name]
            solved, solver = self.ranges(values).solve(learned.logits), "nearest"
            if factor is not None:
                solved, solver = better_walked(values, current.support, solved, factor, self.integers(), self.group_size)
            packed = self.masked_like(current, self.pack(solved, slice(None), self.integers()))
            compressed[name] = Compressed(packed, {**learned.facts, "solver": solver})
        return compressed

    def optimizer(self, clipper: Clipper) -> torch.optim.Optimizer:
        """AdamW on the logits, as published."""
        return torch.optim.AdamW(list(clipper.logits.values()), lr=self.learning_rate, weight_decay=0.0)

    def _step(self, run: BlockRun, batch: int, clipper: Clipper, optimizer: torch.optim.Optimizer) -> bool:
        """One step, unless loss or gradients are not finite."""
        with torch.enable_grad():
            loss = run.loss(batch, clipper.rounded())
            run.check_gradients(loss, self.name)
            optimizer.zero_grad()
            loss.backward()
        if not finite([loss, *(each.grad for each in clipper.logits.values())]):
            return False
        optimizer.step()
        return True

    def _factor(self, problem: Problem) -> Factor:
        hessian, count = problem.hessian(self.name, "rtn")
        return factorise(hessian, self.damping, name=" and ".join(problem.current), samples=count)


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every value of every tensor is finite; a gradient that did not come does not count."""
    return all(bool(torch.isfinite(each).all()) for each in tensors if each is not None)
