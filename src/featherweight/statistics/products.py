"""`Xᵀ X`, added up batch by batch: the Hessian of a linear's input, and the largest product of a calibration."""

from __future__ import annotations

import torch
from torch import Tensor

#: Dtypes whose products float32 holds exactly; a GPU multiplies them as they are and adds up in float32.
NARROW = (torch.bfloat16, torch.float16)

#: Columns of one product on such a GPU: of each, what lies left of the diagonal is not computed.
PANEL = 2048


def add_product_(total: Tensor, x: Tensor) -> Tensor:
    """`total += Xᵀ X` on and above the diagonal; what lies below is left unsaid (`mirror_` fills it in).

    Inputs of 16 bits on a CUDA device are multiplied as they are, at ten times the rate of float32: their products are exact in
    float32, in which they are added up. All others are first brought to the dtype of `total`.

    Args:
        total: `[in, in]`, float32 or float64; overwritten.
        x: `[tokens, in]`.
    """
    if not (x.is_cuda and x.dtype in NARROW and total.dtype == torch.float32):
        x = x.to(total.dtype)
        return total.addmm_(x.t(), x)
    width = len(total)
    for start in range(0, width, PANEL):
        stop = min(start + PANEL, width)
        panel = total[start:stop, start:]
        torch.addmm(panel, x[:, start:stop].t(), x[:, start:], out_dtype=torch.float32, out=panel)
    return total
