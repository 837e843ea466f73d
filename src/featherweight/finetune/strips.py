"""Low-rank terms inside packed weights: where dense factors lie, and how leading ranks become dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.packed.base import PackedWeight, children, from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.low_rank import SIDES, LowRank
from featherweight.packed.rotated import PREFIX, Rotated
from featherweight.packed.sum import Sum

#: In which leading ranks are stored anew.
STRIP_DTYPE = torch.float16


def dense_factors(description: Mapping[str, Any], *, pairs: bool = False) -> list[str]:
    """Names of the stored tensors `[rank, features]` of low-rank factors that are stored dense.

    Args:
        pairs: only where both factors of a term are.
    """
    below = children(description)
    if description["kind"] == LowRank.kind:
        dense = [f"{prefix}values" for prefix, child in below.items() if child["kind"] == Dense.kind]
        return dense if len(dense) == len(SIDES) or not pairs else []
    return [prefix + name for prefix, child in below.items() for name in dense_factors(child, pairs=pairs)]


def split_ranks(weight: PackedWeight, rank: int) -> PackedWeight:
    """The same weight with the leading `rank` ranks of each rounded low-rank term in 16-bit factors, the rest as it was.

    `L R = L₁ R₁ + L₂ R₂`, `L₁ [out, rank]`; values change by the rounding to 16 bits only.
    """
    if isinstance(weight, Sum):
        return Sum(tuple(split_ranks(term, rank) for term in weight.terms))
    if isinstance(weight, Rotated):
        inner = split_ranks(weight.inner, rank)
        maps = {name: tensor for name, tensor in weight.stored.items() if not name.startswith(PREFIX)}
        held = {PREFIX + name: tensor for name, tensor in inner.tensors().items()}
        return Rotated({**weight.described, "inner": inner.description()}, held | maps)
    if not isinstance(weight, LowRank) or all(isinstance(each, Dense) for each in (weight.left, weight.right)):
        return weight
    sides = (weight.left, weight.right)
    left, right = (Dense(side.dequantize()[:rank].to(STRIP_DTYPE).contiguous()) for side in sides)
    if rank >= weight.rank:
        return LowRank(left, right)
    rest = slice(rank, weight.rank)
    return Sum((LowRank(left, right), LowRank(*(side.take(outputs=rest) for side in sides))))


def thaw(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], free: set[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same weight for many forwards: every part without a `free` tensor as its float32 values.

    Returns:
        Description and tensors; free tensors keep their names.
    """
    if not free & tensors.keys():
        values = from_tensors(description, tensors).dequantize()
        return Dense.describe((values.shape[0], values.shape[1]), values.dtype), {"values": values}
    described, held = dict(description), dict(tensors)
    for prefix, child in children(description).items():
        names = layout_of(child)
        part = {name: held.pop(prefix + name) for name in names}
        inside = {name.removeprefix(prefix) for name in free if name.startswith(prefix)}
        if child["kind"] != Dense.kind:
            child, part = thaw(child, part, inside)
        described[prefix[:-1]] = child
        held |= {prefix + name: tensor for name, tensor in part.items()}
    return described, held
