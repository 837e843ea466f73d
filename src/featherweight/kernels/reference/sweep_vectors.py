"""Blocks of columns that are rounded eight at a time: a walk with error feedback, and coordinate descent; plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.vectors import SIZE, Vectors


def sweep_vectors(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    root: Tensor,
    scale: Tensor,
    rule: Vectors,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
) -> None:
    """Round eight columns after eight, each corrected by the errors of those before them in the block.

    Columns come first: every tensor is `[columns, rows]` unless said.

    Args:
        target: values corrected for everything before the block; overwritten by `ŵ`.
        original: `w`, float32.
        feedback: `Ũ [columns, columns]`, upper triangular with identities of 8 on the diagonal.
        root: `R [columns, columns]` of the Hessian, upper triangular.
        scale: `[rows]` float32.
        rule: the codebook.
        codes: written, `[columns / 8, rows]` int32.
        error: written, `w − ŵ`.
        loss: `‖R_bbᵀ (t − ŵ)‖²` of each vector is added, `[rows]` float32.
    """
    for start in range(0, len(target), SIZE):
        part = slice(start, start + SIZE)
        value = target[part].addmm_(feedback[:start, part].T, error[:start]) if start else target[part]
        codes[start // SIZE], decoded = rule.apply(value.T, scale)
        error[part] = original[part] - decoded.T
        loss += (root[part, part].T @ (value - decoded.T)).square().sum(0)
        target[part] = decoded.T


def descend_vectors(
    pull: Tensor,
    hessian: Tensor,
    inverses: Tensor,
    scale: Tensor,
    rule: Vectors,
    codes: Tensor,
    decoded: Tensor,
    error: Tensor,
    gain: Tensor,
) -> None:
    """From the last eight columns to the first, round `ŵ_k + (E H)_k H_kk⁻¹` anew where that lowers the row's objective.

    Args:
        pull: `(E H)ᵀ` of this block, `[columns, rows]`; of no use afterwards.
        hessian: of this block, `[columns, columns]`.
        inverses: of its blocks of 8, `[columns / 8, 8, 8]`.
        scale: `[rows]` float32.
        rule: the codebook.
        codes: `[columns / 8, rows]` int32; overwritten.
        decoded, error: `ŵ` and `w − ŵ`; overwritten.
        gain: what the objective of each row falls by is added, `[rows]` float32.
    """
    for start in reversed(range(0, len(pull), SIZE)):
        part, index = slice(start, start + SIZE), start // SIZE
        found, rounded = rule.apply((decoded[part] + inverses[index] @ pull[part]).T, scale)
        step = rounded.T - decoded[part]
        falls = (step * (2 * pull[part] - hessian[part, part] @ step)).sum(0)
        better = falls > 0
        step = torch.where(better, step, 0.0)
        codes[index] = torch.where(better, found, codes[index])
        decoded[part] = torch.where(better, rounded.T, decoded[part])
        error[part] -= step
        pull[:start].addmm_(hessian[part, :start].T, step, alpha=-1)
        gain += falls.clamp(min=0.0)
