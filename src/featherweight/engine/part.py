"""The linears that see one input alike, on their way through the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.engine.task import BlockTask
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.models.axis import Axis
from featherweight.models.transforms import Transform
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked
from featherweight.packed.rotated import Rotated
from featherweight.planning.maps import linears_by_method
from featherweight.statistics.inputs import InputStatistics

#: From values `[out, in]` to others.
Change = Callable[[Tensor], Tensor]


@dataclass
class Part:
    """The linears of one axis that see its input alike, and how they see it.

    Attributes:
        axis: whose input they read.
        chains: methods by linear.
        dtypes: of the checkpoint, by linear.
        originals, seen: weights `[out, in]` float32 as they were, and the statistics of the input as it was.
        weights, statistics: the same after the maps so far; what methods get to see.
        current: what each linear is stored as so far, within the maps beside it.
        beside: maps that stand beside the weights, the first outermost.
        undo: by linear, what takes folded maps back out of its values, the last one first.
        seconds: spent in its methods.
    """

    axis: Axis
    chains: dict[str, tuple[Method, ...]]
    dtypes: dict[str, torch.dtype]
    originals: Mapping[str, Tensor]
    seen: InputStatistics | None
    weights: dict[str, Tensor]
    statistics: InputStatistics | None
    current: dict[str, Compressed]
    beside: tuple[Transform, ...] = ()
    undo: dict[str, tuple[Change, ...]] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, task: BlockTask, axis: Axis, statistics: InputStatistics | None) -> Part:
        """All linears of an axis that have a chain, as the checkpoint has them."""
        linears = {linear.name: linear for linear in task.plan.linears(task.block) if linear.name in axis.consumers}
        chains = {name: task.plan.chains.linears[name] for name in axis.consumers if task.plan.chains.linears.get(name)}
        weights = {name: linears[name].read(task.model).to(torch.float32) for name in chains}
        dtypes = {name: task.plan.weights.dtype(linears[name].weight_name) for name in chains}
        current = {name: Compressed(Dense(weights[name].to(dtypes[name]))) for name in chains}
        return cls(axis, chains, dtypes, dict(weights), statistics, weights, statistics, current)

    def step(self, index: int) -> Iterator[tuple[Method, list[str]]]:
        """The linears that share a method and its settings at this step, together."""
        yield from linears_by_method(self.chains, self.axis, index).items()

    def problem(self, names: Sequence[str], seed: int, step: int, settings: Mapping[str, Any] | None = None) -> Problem:
        """Some of the linears as a method gets to see them at a step."""
        return Problem(
            {name: self.weights[name] for name in names},
            {name: self.current[name].weight for name in names},
            self.statistics,
            self.dtypes[names[0]],
            seed,
            step,
            {name: settings[name] for name in names if name in settings} if settings else {},
        )

    def split(self, names: Sequence[str]) -> tuple[Part, Part]:
        """These linears, and the others, which see the input alike no longer."""

        def held(keep: bool) -> Part:
            inside = [name for name in self.chains if (name in names) == keep]
            return replace(
                self,
                chains={name: self.chains[name] for name in inside},
                weights={name: self.weights[name] for name in inside},
                current={name: self.current[name] for name in inside},
                seconds=self.seconds * len(inside) / len(self.chains),
            )

        return held(True), held(False)

    def map_input(self, transform: Transform) -> None:
        """From now on all linears read `T x`; their product stays what it was."""
        change = transform.contragredient().apply
        for name in self.chains:
            self.change(name, change)
        if self.statistics is not None:
            self.statistics = self.statistics.transformed(transform)

    def change(self, name: str, change: Change) -> None:
        """Put `change` on the reference weight of a linear, and on what it is stored as: dense, or dense beneath a mask."""
        self.weights[name] = change(self.weights[name].double()).float()
        self.current[name] = replace(self.current[name], weight=_changed(self.current[name].weight, change))

    def take_back(self, name: str, undo: Change) -> None:
        """Note how a folded map is taken out of a linear's values again."""
        self.undo = {**self.undo, name: (*self.undo.get(name, ()), undo)}

    def stored(self, name: str) -> PackedWeight:
        """What a linear is stored as, with the maps beside it."""
        weight = self.current[name].weight
        for transform in reversed(self.beside):
            weight = Rotated.of(weight, transform, dtype=self.dtypes[name])
        return weight

    def outside(self, values: Tensor) -> Tensor:
        """Values `[out, in]` that stand within the maps beside them, as the block reads them."""
        for transform in reversed(self.beside):
            values = transform.transpose().apply(values)
        return values

    def as_before(self, name: str, values: Tensor) -> Tensor:
        """Values `[out, in]` as the block reads them, with all folded maps taken out."""
        for undo in reversed(self.undo.get(name, ())):
            values = undo(values)
        return values


def _changed(weight: PackedWeight, change: Change) -> PackedWeight:
    dtypes = {tensor.dtype for name, tensor in weight.tensors().items() if name.endswith("values")}
    values = Dense(change(weight.dequantize(torch.float64)).to(*dtypes).contiguous())
    if not isinstance(weight, Masked):
        return values
    mask = change(weight.support.double()) != 0  # maps of dropped weights scale or move them
    return Masked.of(values, mask, weight.description())
