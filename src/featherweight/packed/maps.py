"""How a map of a weight's inputs or outputs is stored: factors, indices or signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, SCALED
from featherweight.models.hadamard import construct
from featherweight.models.transforms import Diagonal, Hadamard, Permutation, ScaledHadamard, Transform, trusted
from featherweight.packed.base import Layout
from featherweight.packed.dtypes import dtype_from, dtype_name
from featherweight.packed.sparse_rows import position_dtype, read_positions


def describe_map(kind: str, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Description of a map of `size` columns; the factors of a diagonal in `dtype`, a Hadamard in one block."""
    described: dict[str, Any] = {"map": kind, "size": size}
    if kind in (DIAGONAL, SCALED):
        described["dtype"] = dtype_name(dtype)
    if kind in (ORTHOGONAL, SCALED):
        described |= {"block": size, "made": construct(size).name, "inverted": False}
    return described


def description_of(transform: Transform, dtype: torch.dtype) -> dict[str, Any]:
    """As `describe_map`, of this map."""
    described = describe_map(transform.kind, transform.size, dtype)
    if isinstance(transform, Hadamard | ScaledHadamard):
        made = transform.construction.name
        described |= {"block": transform.block, "made": made, "inverted": transform.inverted}
    if isinstance(transform, ScaledHadamard):
        described["divides"] = transform.divides
    return described


def map_layout(described: Mapping[str, Any]) -> Layout:
    """The one tensor that is stored of a so described map."""
    size = described["size"]
    if described["map"] in (DIAGONAL, SCALED):
        return {"factors": ((size,), dtype_from(described["dtype"]))}
    if described["map"] == PERMUTATION:
        return {"indices": ((size,), position_dtype(size))}
    return {"signs": ((packed_width(size, 1),), torch.uint8)}


def write_map(transform: Transform, dtype: torch.dtype) -> dict[str, Tensor]:
    """As `map_layout`; factors are rounded to `dtype`."""
    if isinstance(transform, Diagonal):
        return {"factors": transform.values.to(dtype)}
    if isinstance(transform, ScaledHadamard):
        return {"factors": transform.factors.to(dtype)}
    if isinstance(transform, Permutation):
        return {"indices": transform.indices.to(position_dtype(transform.size))}
    assert isinstance(transform, Hadamard)
    return {"signs": pack((transform.signs < 0).to(torch.uint8), 1)}


def read_map(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Transform:
    """The inverse of `write_map`; looks at no value, so that no device is waited for."""
    if described["map"] == DIAGONAL:
        return trusted(Diagonal, values=tensors["factors"].to(torch.float32))
    if described["map"] == PERMUTATION:
        return trusted(Permutation, indices=read_positions(tensors["indices"]))
    made = {name: described[name] for name in ("block", "inverted", "made")}
    if described["map"] == SCALED:
        return trusted(ScaledHadamard, factors=tensors["factors"].to(torch.float32), divides=described["divides"], **made)
    signs = 1 - 2 * unpack(tensors["signs"], 1, described["size"]).to(torch.int8)
    return trusted(Hadamard, signs=signs, **made)


def as_stored(transform: Transform, dtype: torch.dtype) -> Transform:
    """The map as it will be read: a diagonal's factors rounded to `dtype`, in float64.

    Raises:
        FeatherweightError: factors that `dtype` does not have.
    """
    return Diagonal(transform.values.to(dtype).double()) if isinstance(transform, Diagonal) else transform
