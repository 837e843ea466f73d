"""What can leave a block one by one (MLP channels, KV groups, query heads), and every slice of a tensor that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.axis import PERMUTATION, Axis

if TYPE_CHECKING:
    from featherweight.models.structure import Structure

CHANNELS, KV_GROUPS, QUERY_HEADS = "channels", "kv_groups", "query_heads"

#: A dimension of a tensor, and for each of its indices the unit that it belongs to; -1 stays whatever goes.
Slices = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Units:
    """Parts of one block of which any may go.

    Attributes:
        kind: "channels", "kv_groups" or "query_heads".
        reader: the linear that reads them.
        columns: for each of its inputs the unit that makes it, `[in]`; all units make as many.
        classes: for each unit the class of which as many must stay as of every other (the KV group of a query head).
        tensors: what shrinks with them, the reader's weight included, by full name.
    """

    kind: str
    reader: str
    columns: tuple[int, ...]
    classes: tuple[int, ...]
    tensors: Mapping[str, Slices]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.classes)

    def in_class(self) -> int:
        """How many are in a class."""
        return self.count // len(set(self.classes))

    def cut(self, name: str, tensor: Tensor, kept: Tensor) -> Tensor:
        """What is left of a tensor, by its full name, when the units `kept` (int64) stay."""
        if name not in self.tensors:
            return tensor
        dimension, owners = self.tensors[name]
        return tensor.index_select(dimension, stays(owners, kept).to(tensor.device))

    def shape(self, name: str, shape: tuple[int, ...], left: int) -> tuple[int, ...]:
        """What is left of a tensor's shape when so many units stay."""
        if name not in self.tensors:
            return shape
        dimension, owners = self.tensors[name]
        of_each = sum(owner >= 0 for owner in owners) // self.count
        gone = of_each * (self.count - left)
        return tuple(size - gone if index == dimension else size for index, size in enumerate(shape))

    def moved(self, first: str, block: str) -> Units:
        """The same units of another block."""
        named = {block + name.removeprefix(first): slices for name, slices in self.tensors.items()}
        return replace(self, reader=block + self.reader.removeprefix(first), tensors=named)


def stays(owners: tuple[int, ...], kept: Tensor) -> Tensor:
    """Indices, rising, of what belongs to a kept unit or to none."""
    allowed = torch.zeros(max(*owners, int(kept.max())) + 2, dtype=torch.bool)
    allowed[kept.cpu()] = True
    allowed[-1] = True  # owner -1
    return allowed[torch.tensor(owners)].nonzero().flatten()


def find_channels(structure: Structure, axes: Mapping[str, tuple[Axis, ...]]) -> dict[str, Units]:
    """The MLP channels of every block: an axis of one linear whose columns are made by rows of earlier linears, each by its own.

    Args:
        structure: of the model.
        axes: as `find_all_producers` found them.

    Raises:
        FeatherweightError: a block without them.
    """
    return {block: _channels(structure, found) for block, found in axes.items()}


def _channels(structure: Structure, axes: tuple[Axis, ...]) -> Units:
    for axis in axes:
        free = axis.groups is None and axis.shared is None and PERMUTATION in axis.admits
        if not (free and len(axis.consumers) == 1 and all(producer.kind == "linear" for producer in axis.producers)):
            continue
        owners: dict[str, list[int]] = {}
        for producer in axis.producers:  # twice the same linear where gate and up are one
            rows = producer.rows or range(axis.size)
            mine = owners.setdefault(producer.name, [-1] * structure.linear(producer.name).shape[0])
            for column, row in enumerate(rows):
                mine[row] = column
        columns = tuple(range(axis.size))
        named = {name: tuple(mine) for name, mine in owners.items()}
        return Units(CHANNELS, axis.consumers[0], columns, (0,) * axis.size, tensors_of(structure, axis, columns, named))
    raise FeatherweightError(
        f"no MLP channels that can go in {axes[0].block if axes else 'a block'}",
        found=", ".join(f"{axis.name}: {', '.join(sorted(axis.admits)) or 'nothing'}" for axis in axes),
        expected="an axis between two linears that may be permuted",
        fix="use the method structured, which keeps the model's shapes",
    )


def tensors_of(
    structure: Structure, axis: Axis, columns: tuple[int, ...], owners: Mapping[str, tuple[int, ...]]
) -> dict[str, Slices]:
    """The slices of every tensor that goes with units.

    Args:
        structure: of the model.
        axis: that the units make.
        columns: the unit of each of its columns.
        owners: by linear (its path) or other tensor (its name), the unit of each row; below 0 where it stays.
    """
    linears = {linear.name: linear for linear in structure.linears[axis.block]}
    tensors: dict[str, Slices] = {}
    for name, mine in owners.items():
        if max(mine) < 0:
            continue
        linear, rows = linears.get(name), tuple(max(owner, -1) for owner in mine)
        tensors[linear.weight_name if linear else name] = (1 if linear and linear.transposed else 0, rows)
        if linear and linear.bias:
            tensors[f"{name}.bias"] = (0, rows)
    reader = linears[axis.consumers[0]]
    return tensors | {reader.weight_name: (0 if reader.transposed else 1, columns)}


def last(units: Units, left: int) -> Tensor:
    """The last units of every class, so many in all: any choice, to try."""
    classes, each = torch.tensor(units.classes), left // len(set(units.classes))
    return torch.cat([(classes == one).nonzero().flatten()[-each:] for one in classes.unique()]).sort().values
