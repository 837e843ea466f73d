"""The kernel that fits, selects and decides whole blocks of columns, where there is one for a walk."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid
from featherweight.kernels.registry import accelerated
from featherweight.kernels.two_level import TwoLevelFitting
from featherweight.kernels.walking import WalkBlock, Walking
from featherweight.solvers.decision import Decision

#: Dtypes that it rounds to where there is no grid.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def open_blocks(decision: Decision, grid: Grid, walking: Walking) -> WalkBlock | None:
    """What walks blocks of at most 128 columns of `walking`; None where other kernels, or plain torch, have to.

    Args:
        grid: of the walk.
    """
    if not decision.in_blocks or (walking.fitting is None and grid.rounding not in DTYPES):
        return None
    dropping, (inputs, rows) = decision.dropping(), walking.target.shape
    fits = walking.fitting is not None and walking.group_index is None
    signature: dict[str, Any] = {"inputs": inputs, "rows": rows, "group_size": walking.size if fits else 0}
    if isinstance(walking.fitting, TwoLevelFitting):
        signature["second_group_size"] = walking.fitting.second
    if dropping is not None:
        signature |= {"how": dropping.how, "of": dropping.of, "linears": list(dropping.linears)}
    kernel = accelerated("walk_block", signature, walking.target.device)
    if kernel is None:
        return None
    try:
        opened: WalkBlock = kernel(walking, dropping)
    except FeatherweightError as problem:  # it does not compile here
        warnings.warn(f"blocks of columns are walked by slower kernels: {problem}", RuntimeWarning, stacklevel=2)
        return None
    decision.walked_by_kernel(walking)
    return opened
