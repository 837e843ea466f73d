"""What every linear is stored as after its chain, and which maps of inputs are folded away or stand beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Method
from featherweight.methods.inside import storage_after
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis, Producer
from featherweight.models.structure import Linear
from featherweight.packed.dense import Dense
from featherweight.packed.maps import describe_map
from featherweight.packed.rotated import Rotated

#: What a map of each kind is made of.
WORDS = {DIAGONAL: "factors", PERMUTATION: "permutation", ORTHOGONAL: "rotation"}


@dataclass(frozen=True)
class PlannedMap:
    """One map that a step draws.

    Attributes:
        axis: whose input it maps.
        step: index of the step in the chains.
        method: that draws it.
        linears: those that see it; all that read the axis where it is folded.
        obstacle: why it cannot be folded and stands beside the weights; "" where it is folded.
    """

    axis: Axis
    step: int
    method: Method
    linears: tuple[str, ...]
    obstacle: str

    @property
    def folds(self) -> bool:
        """Whether the map is folded into what makes the axis."""
        return not self.obstacle

    @property
    def producers(self) -> tuple[Producer, ...]:
        """What takes it up where it is folded."""
        return tuple(each for each in self.axis.producers if self.folds and self.method.map_kind in each.admits)

    @property
    def name(self) -> str:
        """`awq's factors`."""
        return f"{self.method.name}'s {WORDS[self.method.map_kind]}"

    def describe(self) -> str:
        """The map and its place, in words that are alike in all blocks."""
        if not self.folds:
            return f"{self.name}, beside the weight: {self.obstacle}"
        names = dict.fromkeys(each.name.removeprefix(f"{self.axis.block}.") for each in self.producers)
        return f"{self.name}, folded into {', '.join(names)}"


@dataclass
class Storages:
    """What the chains of a model make.

    Attributes:
        descriptions: of every linear that has a chain, after it.
        maps: by stage, in the order in which they are drawn.
    """

    descriptions: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: dict[str, tuple[PlannedMap, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        linears: Mapping[str, Sequence[Linear]],
        axes: Mapping[str, Sequence[Axis]],
        chains: Mapping[str, tuple[Method, ...]],
        dtype: Callable[[Linear], torch.dtype],
    ) -> Storages:
        """Follow every chain on descriptions alone.

        Args:
            linears, axes: by stage; axes without producers make every map stand beside the weights.
            chains: methods by linear.
            dtype: of the checkpoint.

        Raises:
            FeatherweightError: what `storage_after` raises, or a map of weights that cannot be mapped any more.
        """
        made = cls()
        for stage, group in linears.items():
            chained = [linear for linear in group if chains.get(linear.name)]
            followed = _Stage(
                axes.get(stage, ()),
                {linear.name: chains[linear.name] for linear in chained},
                {linear.name: dtype(linear) for linear in chained},
                {linear.name: Dense.describe(linear.shape, dtype(linear)) for linear in chained},
            )
            made.maps[stage] = tuple(followed.run())
            made.descriptions |= {name: followed.stored(name) for name in followed.current}
        return made


@dataclass
class _Stage:
    """A block on its way through the steps: what each linear is stored as so far, and the maps beside it with their numbers."""

    axes: Sequence[Axis]
    chains: Mapping[str, tuple[Method, ...]]
    dtypes: Mapping[str, torch.dtype]
    current: dict[str, dict[str, Any]]
    beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    drawn: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def run(self) -> Iterator[PlannedMap]:
        for index in range(max(map(len, self.chains.values()), default=0)):
            for axis in self.axes:
                for method, together in linears_by_method(self.chains, axis, index).items():
                    if method.prepares:
                        yield from [self._map(axis, index, method, names) for names in self._alike(together)]
            for name, chain in self.chains.items():
                if index < len(chain):
                    self.current[name] = storage_after(chain[index], self.current[name], self.dtypes[name])

    def stored(self, name: str) -> dict[str, Any]:
        """With the maps around it, the first outermost."""
        description = self.current[name]
        for each in reversed(self.beside.get(name, [])):
            description = Rotated.describe(description, each)
        return description

    def _alike(self, names: Sequence[str]) -> list[list[str]]:
        """Linears that see their input through the same maps so far, together."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            groups.setdefault(self.drawn.get(name, ()), []).append(name)
        return list(groups.values())

    def _map(self, axis: Axis, index: int, method: Method, names: list[str]) -> PlannedMap:
        for name in names:
            _check_mappable(method, name, self.current[name])
        planned = PlannedMap(axis, index, method, tuple(names), self._obstacle(axis, method, names))
        if not planned.folds:
            number = sum(map(len, self.drawn.values()))
            for name in names:
                self.drawn[name] = (*self.drawn.get(name, ()), number)
                self.beside.setdefault(name, []).append(describe_map(method.map_kind, axis.size, self.dtypes[name]))
        return planned

    def _obstacle(self, axis: Axis, method: Method, names: Sequence[str]) -> str:
        def shown(paths: Sequence[str]) -> str:
            return ", ".join(path.removeprefix(f"{axis.block}.") for path in paths)

        missing = [name for name in axis.consumers if name not in names]
        if missing:
            return f"{shown(missing)} takes no part"
        if axis.others:
            return f"{shown(axis.others)} reads the input too"
        if any(self.beside.get(name) for name in names):
            return "another map stands there"
        if method.map_kind not in axis.admits:
            return "nothing that makes the input takes it up"
        rounded = [
            each.name for each in axis.producers if method.map_kind in each.admits and not self._takes_rows(each, method)
        ]
        return f"{shown(rounded)} is {self.current[rounded[0]]['kind']} by then" if rounded else ""

    def _takes_rows(self, producer: Producer, method: Method) -> bool:
        """Whether the producer's rows can still be changed exactly."""
        current = self.current.get(producer.name)
        return current is None or _is_dense(current, masked=method.map_kind != ORTHOGONAL)


def linears_by_method(chains: Mapping[str, tuple[Method, ...]], axis: Axis, index: int) -> dict[Method, list[str]]:
    """The axis's linears that share a method and its settings at a step, together."""
    together: dict[Method, list[str]] = {}
    for name in axis.consumers:
        if index < len(chains.get(name, ())):
            together.setdefault(chains[name][index], []).append(name)
    return together


def _is_dense(current: Mapping[str, Any], masked: bool) -> bool:
    return current["kind"] == "dense" or (masked and current["kind"] == "masked" and current["values"]["kind"] == "dense")


def _check_mappable(method: Method, name: str, current: Mapping[str, Any]) -> None:
    word = WORDS[method.map_kind]
    if not _is_dense(current, masked=True):
        raise FeatherweightError(
            f"{method.name}'s {word} would change weights of {name} that a step before has stored",
            found=f"weights stored as {current['kind']}",
            expected="dense weights, or dense ones of which some were dropped",
            fix=f"put {method.name} before it",
        )
    if current["kind"] == "masked" and method.map_kind == ORTHOGONAL:
        raise FeatherweightError(
            f"{method.name}'s {word} would mix dropped weights of {name} with others",
            found="a step before dropped some",
            expected="it before anything is dropped",
            fix=f"put {method.name} first",
        )
    if current["kind"] == "masked" and method.map_kind == PERMUTATION and ":" in current["pattern"]:
        raise FeatherweightError(
            f"{method.name}'s {word} would break the pattern of {name}",
            found=f"a step before kept {current['pattern']}",
            expected="it before the step with the pattern, or a pattern that does not depend on the order of inputs",
            fix=f"put {method.name} first",
        )
