"""What a decode step does to rows of activations between its products, and a dense product of rows, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def embed(table: Tensor, token: Tensor, scale: float, out: Tensor) -> Tensor:
    """Rows of `table [vocabulary, features]` for `token [batch]`, times `scale`, to `out [batch, features]`."""
    return out.copy_(functional.embedding(token, table).float() * scale)


def add_norm(hidden: Tensor, delta: Tensor | None, gain: Tensor, eps: float, out: Tensor) -> Tensor:
    """`hidden += delta`, in place, then `hidden / rms(hidden) · gain` to `out`; all `[batch, features]`, `gain [features]` float32."""
    if delta is not None:
        hidden.add_(delta)
    return out.copy_(normed(hidden.float(), eps) * gain)


def gate(both: Tensor, activation: str, out: Tensor) -> Tensor:
    """`activation(a) · b` of `both = a | b [batch, 2 · features]` to `out [batch, features]`; "silu" or "gelu_tanh"."""
    first, second = both.float().chunk(2, -1)
    return out.copy_(activated(first, activation).to(both.dtype).float() * second)


def row_product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`residual + activation(norm(x) Wᵀ + b)` of one row, `x [1, in]` to `out [1, outputs]`.

    Args:
        weight: `[outputs, in]`; with an activation `[2 · outputs, in]`, whose second half multiplies the activated first.
        gain: of an RMS norm of x, `[in]` float32; None for none.
        residual: may be `out` itself.
    """
    value = x.float()
    if gain is not None:
        value = normed(value, eps) * gain
    product = functional.linear(value, weight.float(), None if bias is None else bias.float())
    if activation is not None:
        first, second = product.chunk(2, -1)
        product = activated(first, activation) * second
    return out.copy_(product if residual is None else residual.float() + product)


def normed(value: Tensor, eps: float) -> Tensor:
    """`value / √(mean of squares + eps)` over the last dimension."""
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)


def activated(value: Tensor, activation: str) -> Tensor:
    """SiLU, or GELU by its tanh form."""
    return functional.silu(value) if activation == "silu" else functional.gelu(value, approximate="tanh")
