"""One block of columns, walked in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.keeping import LIMITS, Keeping
from featherweight.kernels.narrow import Narrow

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
    rounding: str | torch.dtype | Narrow = "integer",
    keeping: Keeping | None = None,
    run: int = 1,
) -> None:
    """Round `k` columns one after the other, each corrected by the errors of those before it in the block.

    `t_j = target_j + Σ_{i<j} E_i Ũ_ij`, `q_j = clamp(round(t_j / s) + z, 0, largest_code)`, `ŵ_j = (q_j − z) s`,
    `E_j = w_j − ŵ_j`. Columns come first: every tensor is `[k, rows]` unless said.

    Args:
        target: values corrected for everything before the block; overwritten by `ŵ`.
        original: `w`, float32.
        feedback: `Ũ [k, k]`, upper triangular with ones on the diagonal.
        importance: `r_jj² [k]`.
        scale, zero: `[groups, rows]` float32.
        group: row of `scale` and `zero` for each column, `[k]` int32.
        dropped: True where `ŵ` is 0, bool, or None.
        largest_code: codes run from 0 to this.
        codes: written, uint8.
        error: written, `E`.
        loss: `Σ_j r_jj² (t_j − ŵ_j)²` is added, `[rows]` float32.
        rounding: "integer" as above; "real" for `q_j = clamp(round(t_j / s + z), 0, largest_code)`; a narrow format, to which
            `t_j / s` is rounded (`q_j` is its bit pattern, `z` is 0); or a dtype, to which `t_j` is rounded (no codes are
            written then).
        keeping: weights that are kept beside their codes; None rounds all.
        run: columns `[i · run, (i + 1) · run)` share a grid, as far as is known without a look at `group`.
    """
    groups, weights, scales, zeros = group.tolist(), importance.tolist(), scale.unbind(), zero.unbind()
    for start in range(0, target.shape[0], SUB_BLOCK):
        part = slice(start, min(start + SUB_BLOCK, target.shape[0]))
        if start:
            target[part].addmm_(feedback[:start, part].T, error[:start])
        inside, sub_error, rounded = feedback[part, part].T.contiguous(), error[part], torch.empty_like(target[part])
        for step, (value, code) in enumerate(zip(target[part].unbind(), rounded.unbind(), strict=True)):
            column = start + step
            s, z = scales[groups[column]], zeros[groups[column]]
            if step:
                value.addmv_(sub_error[:step].T, inside[step, :step])
            drop = None if dropped is None else dropped[column]
            if isinstance(rounding, torch.dtype):
                decoded = value.to(rounding, copy=True).to(torch.float32)
                decoded = decoded if drop is None else decoded.masked_fill_(drop, 0.0)
            elif not isinstance(rounding, str):
                decoded = rounding.nearest(value / s)
                decoded = decoded if drop is None else decoded.masked_fill_(drop, 0.0)
                code.copy_(rounding.encode(decoded))
                decoded.mul_(s)
            else:
                _encode(value, s, z, largest_code, drop, code, rounding == "integer")
                decoded = torch.sub(code, z).mul_(s)
            if keeping is not None:
                _keep(value, s, z, largest_code, weights[column], decoded, code, keeping, column)
            torch.sub(original[column], decoded, out=sub_error[step])
            value.sub_(decoded)
            loss.addcmul_(value, value, value=weights[column])
            value.copy_(decoded)
        if not isinstance(rounding, torch.dtype):
            codes[part] = rounded


def _encode(
    value: Tensor, scale: Tensor, zero: Tensor, largest_code: int, dropped: Tensor | None, code: Tensor, integer_zeros: bool
) -> None:
    """Write the codes of one column, `[rows]`; the zero point's where the weight is dropped."""
    torch.div(value, scale, out=code)
    code = code.round_().add_(zero) if integer_zeros else code.add_(zero).round_()
    code.clamp_(0, largest_code)
    if dropped is not None:
        torch.where(dropped, zero, code, out=code)


def _keep(
    value: Tensor, s: Tensor, z: Tensor, largest_code: int, importance: float, decoded: Tensor, code: Tensor,
    keeping: Keeping, column: int,
) -> None:  # fmt: skip
    """Overwrite `decoded` and `code [rows]` where a weight is kept; write what is stored of it."""
    kept = torch.sub(value, decoded).square_().mul_(importance) > keeping.threshold
    of_zero = z.round().clamp_(0, largest_code)
    dense = torch.sub(of_zero, z).mul_(s)
    limit = LIMITS[keeping.narrow]
    residual = torch.sub(value, dense).clamp_(-limit, limit).to(torch.float16)
    if keeping.narrow:
        residual = residual.to(torch.float8_e5m2).to(torch.float16)
    keeping.kept[column], keeping.residual[column] = kept, residual
    decoded.copy_(torch.where(kept, dense + residual.to(torch.float32), decoded))
    code.copy_(torch.where(kept, of_zero, code))
