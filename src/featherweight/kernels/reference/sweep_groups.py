"""One block of columns in groups: each fitted on its weights as they stand, then walked; plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.fitting import Fitting
from featherweight.kernels.reference.sweep_block import sweep_block


def sweep_groups(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    size: int,
    fitting: Fitting,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
) -> None:
    """Fit and walk group after group of a block; see `sweep_block`, whose arguments these are, unless said.

    A group is fitted on `v_j = t_j + Σ_i (w_i − v_i) Ũ_ij`, the sum over its own columns before `j`: what the walk would make of
    it if nothing was rounded.

    Args:
        scale, zero: of the groups of this block, written, `[⌈columns / size⌉, rows]` float32.
        size: columns of a group; the last one may be smaller.
        fitting: of each group.
    """
    columns, rows = target.shape
    for number, first in enumerate(range(0, columns, size)):
        part = slice(first, min(first + size, columns))
        if first:
            target[part].addmm_(feedback[:first, part].T, error[:first])
        standing, width = target[part].clone(), part.stop - first
        index = torch.zeros(width, dtype=torch.int32, device=target.device)
        nothing = torch.zeros(1, rows, device=target.device)
        sweep_block(
            standing, original[part], feedback[part, part], importance[part], nothing + 1, nothing, index, None, 0,
            codes[part], error[part], nothing[0].clone(), torch.float32,
        )  # fmt: skip
        scale[number], zero[number] = fitting.apply(standing.T.contiguous(), importance[part])
        sweep_block(
            target[part], original[part], feedback[part, part], importance[part], scale[number : number + 1],
            zero[number : number + 1], index, None, fitting.largest_code, codes[part], error[part], loss,
        )  # fmt: skip
