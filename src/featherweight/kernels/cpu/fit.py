"""Fitting the uniform grids of all groups of a weight, by `fit.c`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cpu.compiler import library, parallel
from featherweight.kernels.fitting import Fitting

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

#: Weights that a thread is worth waking for.
THREAD_WORK = 1 << 15


class _Job(ctypes.Structure):
    """`FitJob` of `fit.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "importance", "scale", "zero", "parallel")),
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "columns", "size", "weighted", "symmetric", "largest_code", "scale_kind", "threads")
        ),
        ("smallest", ctypes.c_float),
        ("largest", ctypes.c_float),
    )


def fit_groups(weight: Tensor, importance: Tensor | None, size: int, fitting: Fitting) -> tuple[Tensor, Tensor]:
    """Scales and zeros `[rows, groups]` of runs of `size` columns of `weight [rows, in]`; `size` divides `in`.

    The search of the reference; candidates whose errors differ by less than float32 sums do may change places.

    Args:
        importance: weighs squared errors, `[in]`; None weighs all alike.
        fitting: of each group.
    """
    weight = weight.to(torch.float32).contiguous()
    weighs = None if importance is None else importance.to(torch.float32).contiguous()
    rows, columns = weight.shape
    scale, zero = (torch.empty(rows, columns // size) for _ in range(2))
    smallest, largest = fitting.scale_limits()
    job = _Job(
        weight.data_ptr(), None if weighs is None else weighs.data_ptr(), scale.data_ptr(), zero.data_ptr(), parallel() or None,
        rows, columns, size, fitting.by == "weighted", fitting.symmetric, fitting.largest_code, KINDS[fitting.scale_dtype],
        max(1, min(torch.get_num_threads(), weight.numel() // THREAD_WORK)), smallest, largest,
    )  # fmt: skip
    if library("fit").featherweight_fit(ctypes.byref(job)):
        raise FeatherweightError("a kernel found no memory", fix="free some")
    return scale, zero
