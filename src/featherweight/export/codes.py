"""What another program can be told of a packed linear: integer codes on a grid, or plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.bits import unpack
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.masked import Masked
from featherweight.packed.rounded_input import RoundedInput

#: Storages whose values any program can be given as they are, and those that are integer codes once unwrapped.
_PLAIN, _WRAPPED = "dense", {"masked": "values", "rounded_input": "inner"}


@dataclass(frozen=True)
class Codes:
    """`w_ij = s_ig (q_ij − z_ig)`, `g = j // group_size`.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; None for whole rows.
        codes: `[out, in]` uint8; weights that were dropped hold their group's zero point.
        scales: `[out, groups]`.
        zeros: `[out, groups]` uint8, or None where all are `2^(bits−1)`.
    """

    bits: int
    group_size: int | None
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def leaf(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a mask or a rounded input is put around."""
    while description["kind"] in _WRAPPED:
        description = description[_WRAPPED[description["kind"]]]
    return description


def is_plain(description: Mapping[str, Any]) -> bool:
    """Whether the weight is stored as values, some of which may be dropped."""
    return bool(leaf(description)["kind"] == _PLAIN) and not rounds_input(description)


def rounds_input(description: Mapping[str, Any]) -> bool:
    """Whether the input is rounded before it is multiplied."""
    return bool(description["kind"] == "rounded_input")


def no_codes(description: Mapping[str, Any]) -> str | None:
    """Why the weight is no matrix of integer codes with groups of consecutive inputs; None where it is."""
    inner = leaf(description)
    if inner["kind"] != "integer":
        return f"stored as {inner['kind'].replace('_', ' ')}, not as integer codes"
    if inner["group_index"]:
        return "its groups follow the order in which columns were solved (`order: dynamic`; `static` keeps groups in place)"
    if inner["group_size"] and inner["shape"][1] % inner["group_size"]:
        return f"{inner['shape'][1]} inputs are no multiple of its groups of {inner['group_size']}"
    return None


def read_codes(weight: PackedWeight) -> Codes:
    """The codes of a weight of which `no_codes` has nothing to say; bit for bit those of the solver."""
    while isinstance(weight, RoundedInput | Masked):
        weight = weight.inner if isinstance(weight, RoundedInput) else weight.values
    assert isinstance(weight, Integer)
    zeros = None if weight.symmetric else weight.unpacked_zeros()
    return Codes(weight.bits, weight.group_size, unpack(weight.codes, weight.bits, weight.inputs), weight.scales, zeros)


def exactly(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`values` in `dtype`, or None if any of them would change."""
    cast = values.to(dtype)
    return cast if torch.equal(cast.to(values.dtype), values) else None
