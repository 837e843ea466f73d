"""How well one linear is approximated: cheap, deterministic, and no model needed (specification §9.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.split import split_product


def relative_output_error(
    weight: Tensor, approximation: Tensor, hessian: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> float:
    """`tr(E H Eᵀ) / tr(W H Wᵀ)`, `E = W − Ŵ`: squared output error over squared output, averaged over the inputs.

    Args:
        weight: `W [out, in]`.
        approximation: `Ŵ [out, in]`.
        hessian: `[in, in]`, any multiple of Σ x xᵀ; `[in]` for its diagonal; None for the identity (plain weights).
        dtype: of the arithmetic; float64 on request.

    Returns:
        0 for an exact copy, 1 for Ŵ = 0; for W whose outputs are all zero 0 if Ŵ's are too, else infinity.

    Raises:
        FeatherweightError: shapes that do not belong together.
    """
    _check(weight, approximation, hessian)
    reference = _inner(weight, weight, hessian, dtype)
    error = weight.to(dtype) - approximation.to(weight.device, dtype)
    squared = _inner(error, error, hessian, dtype)
    if reference <= 0:
        return 0.0 if squared <= 0 else float("inf")
    return max(0.0, squared) / reference


def output_cosine(
    weight: Tensor, approximation: Tensor, hessian: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> float:
    """`tr(W H Ŵᵀ) / √(tr(W H Wᵀ) · tr(Ŵ H Ŵᵀ))`: cosine between the outputs of a linear and of its approximation.

    Arguments and errors as in `relative_output_error`. 1 for a positive multiple of W; 0 where either has no output.
    """
    _check(weight, approximation, hessian)
    norms = _inner(weight, weight, hessian, dtype) * _inner(approximation, approximation, hessian, dtype)
    return _inner(weight, approximation, hessian, dtype) / norms**0.5 if norms > 0 else 0.0


def cosine_similarity(left: Tensor, right: Tensor, *, dtype: torch.dtype = torch.float32) -> float:
    """Mean over tokens of the cosine between two activations `[..., features]`, such as a block's outputs.

    A token whose vectors are both zero counts as 1, one zero vector as 0.

    Raises:
        FeatherweightError: shapes that differ.
    """
    if left.shape != right.shape:
        raise FeatherweightError("activations of different shapes", found=list(right.shape), expected=list(left.shape))
    one = left.reshape(-1, left.shape[-1]).to(dtype)
    other = right.reshape(-1, right.shape[-1]).to(left.device, dtype)
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    alike = (one.norm(dim=-1) == other.norm(dim=-1)).to(dtype)
    cosine = torch.where(norms > 0, (one * other).sum(-1) / norms.clamp_min(torch.finfo(dtype).tiny), alike)
    return float(cosine.mean())


def _inner(left: Tensor, right: Tensor, hessian: Tensor | None, dtype: torch.dtype) -> float:
    """`tr(A H Bᵀ)`, summed in float64."""
    one = left.to(dtype)
    other = right.to(left.device, dtype)
    if hessian is not None:
        weighting = hessian.to(left.device, dtype)
        one = one * weighting if weighting.dim() == 1 else split_product(one, weighting)
    return float((one * other).sum(dtype=torch.float64))


def _check(weight: Tensor, approximation: Tensor, hessian: Tensor | None) -> None:
    inputs = weight.shape[-1]
    allowed = ((inputs,), (inputs, inputs))
    if (
        weight.dim() != 2
        or approximation.shape != weight.shape
        or (hessian is not None and tuple(hessian.shape) not in allowed)
    ):
        raise FeatherweightError(
            "weight, approximation and Hessian do not belong together",
            found=f"{list(weight.shape)}, {list(approximation.shape)}, {None if hessian is None else list(hessian.shape)}",
            expected="[out, in], [out, in], and [in, in] or [in] or none",
        )
