"""One block of columns, walked in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

#: Columns between two products with everything decided earlier in the block.
SUB_BLOCK = 32


def sweep_block(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    dropped: Tensor | None,
    largest_code: int,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
) -> None:
    """Round `k` columns one after the other, each corrected by the errors of those before it in the block.

    `t_j = target_j + Σ_{i<j} E_i Ũ_ij`, `q_j = clamp(round(t_j / s) + z, 0, largest_code)`, `ŵ_j = (q_j − z) s`,
    `E_j = w_j − ŵ_j`. Columns come first: every tensor is `[k, rows]` unless said.

    Args:
        target: values corrected for everything before the block; overwritten by `ŵ`.
        original: `w`, float32.
        feedback: `Ũ [k, k]`, upper triangular with ones on the diagonal.
        importance: `r_jj² [k]`.
        scale: `[groups, rows]` float32.
        zero: `[groups, rows]` float32, integer values.
        group: row of `scale` and `zero` for each column, `[k]` int32.
        dropped: True where `ŵ` is 0, bool, or None.
        largest_code: codes run from 0 to this.
        codes: written, uint8.
        error: written, `E`.
        loss: `Σ_j r_jj² (t_j − ŵ_j)²` is added, `[rows]` float32.
    """
    groups, weights = group.tolist(), importance.tolist()
    scales, zeros = scale.unbind(), zero.unbind()
    for start in range(0, target.shape[0], SUB_BLOCK):
        stop = min(start + SUB_BLOCK, target.shape[0])
        if start:
            target[start:stop].addmm_(feedback[:start, start:stop].T, error[:start])
        values, errors, rounded = target[start:stop].unbind(), error[start:stop].unbind(), torch.empty_like(target[start:stop])
        triangle = feedback[start:stop, start:stop].T.contiguous()
        for column, (value, code) in enumerate(zip(values, rounded.unbind(), strict=True), start):
            s, z = scales[groups[column]], zeros[groups[column]]
            if column > start:
                value.addmv_(error[start:column].T, triangle[column - start, : column - start])
            torch.div(value, s, out=code).round_().add_(z).clamp_(0, largest_code)
            if dropped is not None:
                torch.where(dropped[column], z, code, out=code)
            decoded = torch.sub(code, z).mul_(s)
            torch.sub(original[column], decoded, out=errors[column - start])
            value.sub_(decoded)
            loss.addcmul_(value, value, value=weights[column])
            value.copy_(decoded)
        codes[start:stop] = rounded
