"""Which inputs may be cut out of a weight whose groups of inputs share a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError


def as_indices(chosen: slice | Tensor, total: int, device: torch.device) -> Tensor:
    """Positions that a slice, a boolean mask or an index tensor picks out of `total`, int64."""
    return torch.arange(total, device=device)[chosen if isinstance(chosen, slice) else chosen.to(device)]


def whole_groups(columns: Tensor, group_size: int, total: int) -> Tensor:
    """The groups that `columns` consists of, in their order.

    Args:
        columns: chosen inputs, int64.
        group_size: consecutive inputs that share a scale.
        total: inputs before the cut; its last group may be smaller, and must then come last.

    Raises:
        FeatherweightError: a group was cut, reordered inside, or a smaller last group does not come last.
    """
    groups = columns[::group_size].div(group_size, rounding_mode="floor")
    inside = torch.arange(group_size, device=columns.device)
    expected = (groups[:, None] * group_size + inside).flatten()
    expected = expected[expected < total]
    tail, last = total % group_size, (total - 1) // group_size
    misplaced = tail != 0 and bool((groups[:-1] == last).any())
    if len(expected) != len(columns) or misplaced or not torch.equal(expected, columns):
        raise FeatherweightError(
            "this cut goes through a group of inputs that share a scale",
            found=f"{len(columns)} inputs, {columns[:1].tolist()} to {columns[-1:].tolist()}",
            expected=f"whole groups: starts at multiples of {group_size}, ends at multiples of {group_size} or at {total}",
            fix="cut at a group's edge, or use one scale per row (group_size: null)",
        )
    return groups
