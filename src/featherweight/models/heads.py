"""Attention heads as units that can go: which rows of which tensors act on which head, found by derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.axes import alike_blocks
from featherweight.models.axis import Axis
from featherweight.models.probe import DoublePrecision, RandomBlock, sample_calls
from featherweight.models.producers import Probe
from featherweight.models.structure import find_structure
from featherweight.models.units import KV_GROUPS, QUERY_HEADS, Units, last, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from featherweight.models.structure import Structure

_SEVERAL = -2  # in the place of an owner: rows that act on more than one label
_TOLERANCE = 1e-10  # of the largest derivative; a row that does not act has rounding alone
_SAME = 1e-9  # relative; a wrong size is off by about 1


def find_heads(model: nn.Module, structure: Structure, axes: Mapping[str, tuple[Axis, ...]]) -> dict[str, dict[str, Units]]:
    """By block, its attention heads as whole KV groups and, where groups have several, as single query heads, by kind.

    No family is listed: rows belong to what they act on in a block with random weights.

    Args:
        model: a skeleton will do.
        structure: of the model.
        axes: as `find_all_producers` found them.

    Raises:
        FeatherweightError: a block without attention heads, or with a linear whose rows act on several KV groups at once.
    """
    firsts = alike_blocks(model, structure)
    known = {first: _heads(model, structure, first, axes[first]) for first in dict.fromkeys(firsts.values())}
    return {block: {kind: units.moved(first, block) for kind, units in known[first].items()} for block, first in firsts.items()}


def runs_without(model: nn.Module, structure: Structure, units: Units, kept: Tensor, smaller: PreTrainedModel) -> bool:
    """Whether the first block of `smaller`, with all units but the `kept` ones cut off, does as if these gave zeros.

    Args:
        model: the original; a skeleton will do.
        structure: of `model`.
        units: of that block in `model`.
        kept: indices of units, int64, rising.
        smaller: a skeleton of another config; or `model`, to see whether its code takes the sizes from its tensors.
    """
    block = next(block for block in structure.blocks if units.reader.startswith(f"{block}."))
    place = block if smaller is model else structure.blocks[0]
    probe = Probe.make(model, structure, block)
    linear, gone = structure.linear(units.reader), ~torch.isin(torch.tensor(units.columns), kept)
    zeroed = probe.block.values[linear.weight_name].clone()
    (zeroed.t() if linear.transposed else zeroed)[:, gone] = 0.0
    _, expected = probe.block.run(*probe.several, changes={linear.weight_name: zeroed})
    values = {place + name.removeprefix(block): units.cut(name, tensor, kept) for name, tensor in probe.block.values.items()}
    call, hidden = probe.several
    try:
        if smaller is not model:
            with DoublePrecision():
                shape, generator = (hidden.shape[0], hidden.shape[1]), torch.Generator().manual_seed(0)
                call = sample_calls(smaller, find_structure(smaller), shape, torch.float64, generator)[1][place]
        _, output = RandomBlock(smaller, place, values).run(call, hidden)
    except (RuntimeError, ValueError, FeatherweightError):  # sizes that the code does not take
        return False
    return bool((output - expected).abs().max() <= _SAME * expected.abs().max())


def follows_weights(model: PreTrainedModel, structure: Structure, units: Units) -> bool:
    """Whether a block's code takes its number of heads from its tensors, and all of these belong to linears."""
    linears = [linear for group in structure.linears.values() for linear in group]
    names = {f"{linear.name}.{leaf}" for linear in linears for leaf in ("weight", "bias")}
    alone = units.kind == KV_GROUPS and units.count > 1 and units.tensors.keys() <= names
    return alone and runs_without(model, structure, units, last(units, units.count - 1), model)


def _heads(model: nn.Module, structure: Structure, block: str, axes: tuple[Axis, ...]) -> dict[str, Units]:
    axis = next((axis for axis in axes if axis.groups is not None and len(axis.consumers) == 1), None)
    if axis is None:
        raise _refused(block, ", ".join(axis.name for axis in axes), "an axis that attention mixes head by head")
    probe, heads = Probe.make(model, structure, block), _numbered(axis.groups or ())
    groups = _groups(axis, heads)
    owners = _owners(probe, structure, axis, groups)
    linears = {linear.name for linear in structure.linears[block]}
    mixed = [name for name, mine in owners.items() if name in linears and _SEVERAL in mine]
    if mixed:
        found = f"rows that act on several KV groups at once, as with a norm over all heads: {', '.join(mixed)}"
        raise _refused(block, found, "rows of q, k and v that act on one group each")
    count, reader = max(groups) + 1, axis.consumers[0]
    units = {KV_GROUPS: Units(KV_GROUPS, reader, groups, (0,) * count, tensors_of(structure, axis, groups, owners))}
    classes = dict(zip(heads, groups, strict=True))  # in the order of first appearance: of the numbers
    if len(classes) > count:
        tensors = tensors_of(structure, axis, heads, _owners(probe, structure, axis, heads))
        units[QUERY_HEADS] = Units(QUERY_HEADS, reader, heads, tuple(classes.values()), tensors)
    return units


def _groups(axis: Axis, heads: tuple[int, ...]) -> tuple[int, ...]:
    """For each column its KV group: heads that share rows of the values are in one."""
    group: dict[int, int] = {}  # of a head: the first head that it shares a row with
    first: dict[int, int] = {}  # of a row: the head that it was seen in first
    for column, head in enumerate(heads):
        row = column if axis.shared is None else axis.shared[column]
        group.setdefault(head, first.setdefault(row, head))
    return _numbered(tuple(group[head] for head in heads))


def _numbered(labels: tuple[int, ...]) -> tuple[int, ...]:
    """The same labels as numbers from 0, in the order of first appearance."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(numbers[label] for label in labels)


def _owners(probe: Probe, structure: Structure, axis: Axis, labels: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """For each row of every linear (by its path) and of every other tensor (by its name), the one label it acts on.

    -1 where it acts on none, -2 on several. For every bit of the labels, the columns where it is set and those where it is
    clear are differentiated apart: a row that acts on one label shows on one side each time, and the sides spell the label.
    """
    linears = {linear.weight_name: linear for linear in structure.linears[axis.block]}
    biases = {f"{linear.name}.bias" for linear in linears.values()}  # go with their rows, even where they act on nothing
    tracked = {
        name: tensor.clone().requires_grad_()
        for name, tensor in probe.block.values.items()
        if tensor.is_floating_point() and tensor.ndim and name not in biases
    }
    inputs, _ = probe.block.run(*probe.several, changes=tracked)
    columns, label = inputs[axis.consumers[0]], torch.tensor(labels)
    weighed = columns * torch.randn(columns.shape, dtype=columns.dtype, generator=torch.Generator().manual_seed(3))
    found: dict[str, Tensor] = {}
    for bit in range(max(1, max(labels).bit_length())):
        sides = []
        for value in (0, 1):
            chosen = (weighed * ((label >> bit) & 1 == value)).sum()
            gradients = torch.autograd.grad(chosen, list(tracked.values()), retain_graph=True, allow_unused=True)
            largest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
            sides.append(
                [_acting(gradient, tensor, largest) for gradient, tensor in zip(gradients, tracked.values(), strict=True)]
            )
        for name, clear, high in zip(tracked, *sides, strict=True):
            linear = linears.get(name)
            side = 1 if linear and linear.transposed else 0
            clear, high = (acting.movedim(side, 0).reshape(acting.shape[side], -1).any(1) for acting in (clear, high))
            spelled = torch.where(clear & high, _SEVERAL, torch.where(high, 1 << bit, torch.where(clear, 0, -1)))
            key = linear.name if linear else name
            found[key] = _joined(found[key], spelled) if key in found else spelled
    return {name: tuple(owners.tolist()) for name, owners in found.items()}


def _acting(gradient: Tensor | None, tensor: Tensor, largest: float) -> Tensor:
    """Which elements of a tensor have a derivative."""
    if gradient is None or not largest:
        return torch.zeros_like(tensor, dtype=torch.bool)
    return gradient.abs() > _TOLERANCE * largest


def _joined(before: Tensor, more: Tensor) -> Tensor:
    """Owners with one bit more known."""
    several = (before == _SEVERAL) | (more == _SEVERAL)
    return torch.where(several, _SEVERAL, torch.where((before < 0) | (more < 0), -1, before + more))


def _refused(block: str, found: str, expected: str) -> FeatherweightError:
    return FeatherweightError(
        f"the attention heads of {block} cannot go one by one",
        found=found,
        expected=expected,
        fix="use --mlp or --blocks, or the method structured, which keeps the model's shapes",
    )
