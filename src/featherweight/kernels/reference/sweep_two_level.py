"""One block of columns in SpQR's groups: each fitted on its weights as they stand, then walked; plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.keeping import Keeping
from featherweight.kernels.reference.sweep_block import sweep_block
from featherweight.kernels.two_level import GROUP, SecondLevel, TwoLevelFitting


def sweep_two_level(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    second_level: SecondLevel,
    fitting: TwoLevelFitting,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
    keeping: Keeping | None = None,
) -> None:
    """Fit and walk group after group of 16 columns; see `sweep_groups` and `sweep_block`, whose arguments these are.

    Args:
        scale, zero: of the groups of this block, written, `[columns / 16, rows]` float32: what the stored form decodes to.
        second_level: of the same groups, written.
        fitting: of each group.
    """
    for number, first in enumerate(range(0, len(target), GROUP)):
        part = slice(first, first + GROUP)
        if first:
            target[part].addmm_(feedback[:first, part].T, error[:first])
        standing, index = target[part].clone(), torch.zeros(GROUP, dtype=torch.int32, device=target.device)
        nothing, inside = torch.zeros_like(loss)[None], feedback[part, part]
        sweep_block(
            standing, original[part], inside, importance[part], nothing + 1, nothing, index, None, 0, codes[part],
            error[part], nothing[0].clone(), torch.float32,
        )  # fmt: skip
        scale[number], zero[number], found = fitting.apply(standing.T.contiguous(), importance[part])
        second_level.of(slice(number, number + 1)).take(found)
        kept = None if keeping is None else keeping.of(part)
        sweep_block(
            target[part], original[part], inside, importance[part], scale[number : number + 1], zero[number : number + 1],
            index, None, fitting.largest_code, codes[part], error[part], loss, "real", kept,
        )  # fmt: skip
