"""Random maps that an axis admits: alike for columns that share a row, and inside their heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis
from featherweight.models.transforms import Diagonal, Hadamard, Permutation, Transform


def draw_transform(axis: Axis, kind: str, generator: torch.Generator) -> Transform:
    """A random map of one kind that fits the axis's heads and shared rows.

    Args:
        axis: whose `shared` and `groups` are known.
        kind: "diagonal" (factors between 1/2 and 2), "permutation" or "orthogonal" (signed Hadamard, the largest blocks).
        generator: on the CPU.

    Raises:
        FeatherweightError: an unknown kind, or heads that no such map fits.
    """
    if kind == DIAGONAL:
        return draw_diagonal(axis, generator)
    if kind == PERMUTATION:
        return draw_permutation(axis, generator)
    if kind == ORTHOGONAL:
        return draw_hadamard(axis, generator)
    raise FeatherweightError(f"there is no kind of map called {kind!r}", expected="diagonal, permutation or orthogonal")


def draw_diagonal(axis: Axis, generator: torch.Generator) -> Diagonal:
    """Factors between 1/2 and 2, log-uniform."""
    factors = torch.exp2(2 * torch.rand(axis.size, dtype=torch.float64, generator=generator) - 1)
    return Diagonal(factors[_classes(axis)])


def draw_permutation(axis: Axis, generator: torch.Generator) -> Permutation:
    """A uniform permutation of the columns, within each head; heads that share rows get the same one."""
    classes, indices = _classes(axis), torch.arange(axis.size)
    order: dict[tuple[int, ...], dict[int, int]] = {}  # of a head's rows: which class moves to which
    for columns in _groups(axis):
        members = classes[columns].tolist()
        key = tuple(sorted(members))
        if len(set(members)) != len(members):
            raise _no_fit(axis, PERMUTATION, "several columns of one head share a row")
        if key not in order:
            shuffled = [key[index] for index in torch.randperm(len(key), generator=generator).tolist()]
            order[key] = dict(zip(key, shuffled, strict=True))
        place = dict(zip(members, columns.tolist(), strict=True))
        indices[columns] = torch.tensor([place[order[key][member]] for member in members])
    return Permutation(indices)


def draw_hadamard(axis: Axis, generator: torch.Generator) -> Hadamard:
    """Random signs, alike for shared rows, and one block for every head."""
    groups = _groups(axis)
    if any(int(columns[-1] - columns[0]) != len(columns) - 1 for columns in groups):
        raise _no_fit(axis, ORTHOGONAL, "the columns of a head are not side by side")
    block = math.gcd(*(len(columns) for columns in groups))
    signs = 1.0 - 2.0 * torch.randint(0, 2, (axis.size,), generator=generator).double()
    return Hadamard(signs[_classes(axis)], block)


def _classes(axis: Axis) -> Tensor:
    """For each column a small number that columns of the same shared row have in common, `[size]`."""
    if axis.shared is None:
        return torch.arange(axis.size)
    return torch.unique(torch.tensor(axis.shared), return_inverse=True)[1]


def _groups(axis: Axis) -> list[Tensor]:
    """The columns of each group, in ascending order."""
    if axis.groups is None:
        return [torch.arange(axis.size)]
    groups = torch.tensor(axis.groups)
    return [(groups == group).nonzero().flatten() for group in groups.unique()]


def _no_fit(axis: Axis, kind: str, found: str) -> FeatherweightError:
    return FeatherweightError(f"no {kind} map fits the heads of {axis.name}", found=found)
