"""Several weights that read one input, as one: their outputs one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.packed.base import PackedWeight, from_tensors, layout_of


def stack(weights: Sequence[PackedWeight]) -> PackedWeight | None:
    """One weight whose rows are those of `weights` in turn; None where they are not stored alike, row by row.

    Only storages whose every tensor has one slice per output stack: codes and scales do, a table that all rows share, or
    rows of differing length, do not.
    """
    descriptions = [weight.description() for weight in weights]
    rows = sum(weight.shape[0] for weight in weights)
    wanted = [_resized(description, weight.shape[0], rows) for description, weight in zip(descriptions, weights, strict=True)]
    if any(each != wanted[0] for each in wanted) or not all(weight.is_linear for weight in weights):
        return None
    layout, tensors = layout_of(wanted[0]), [weight.tensors() for weight in weights]
    sliced = all(
        each[name].shape[:1] == weight.shape[:1] for each, weight in zip(tensors, weights, strict=True) for name in layout
    )
    shapes = (
        {name: (sum(each[name].shape[0] for each in tensors), *tensors[0][name].shape[1:]) for name in layout} if sliced else {}
    )
    if shapes != {name: tuple(shape) for name, (shape, _) in layout.items()}:
        return None
    return from_tensors(wanted[0], {name: join_rows([each[name] for each in tensors]) for name in layout})


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Parts `[rows, ...]` one after another; no copy where they lie so already."""
    first, place = parts[0], parts[0].data_ptr()
    for part in parts:
        if (
            part.data_ptr() != place
            or not part.is_contiguous()
            or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        ):
            return torch.cat(list(parts))
        place += part.nbytes
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride())


def _resized(description: Mapping[str, Any], rows: int, stacked: int) -> dict[str, Any]:
    """The description with as many outputs as all weights have, everywhere in it."""
    told: dict[str, Any] = {
        key: _resized(value, rows, stacked) if isinstance(value, Mapping) else value for key, value in description.items()
    }
    shape = list(told.get("shape", ()))
    if shape[:1] == [rows]:
        told["shape"] = [stacked, *shape[1:]]
    return told
