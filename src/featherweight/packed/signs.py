"""Sign vectors of rotations inside packed weights: where they lie, and how they become real vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.bits import unpack
from featherweight.models.axis import ORTHOGONAL, SCALED
from featherweight.packed.base import PackedWeight, children, from_tensors, layout_of
from featherweight.packed.dtypes import dtype_name
from featherweight.packed.rotated import SIDES, Rotated

#: In which real vectors are stored.
SIGN_DTYPE = torch.float16


def real_signs(weight: PackedWeight, sides: Sequence[str] = SIDES) -> PackedWeight:
    """The same weight, bit for bit, with the signs of every rotation stored as real vectors (QuIP#, section 5).

    Of an input's rotation `H diag(s)` the vector is `s`; of an output's, which is undone, it is that of `diag(s) Hᵀ`.

    Args:
        sides: whose rotations, "input" and "output".
    """
    description, tensors = describe_real_signs(weight.description(), sides), weight.tensors()
    return from_tensors(description, {name: _tensor(name, entry, tensors) for name, entry in layout_of(description).items()})


def describe_real_signs(description: Mapping[str, Any], sides: Sequence[str] = SIDES) -> dict[str, Any]:
    """Description of what `real_signs` makes of a so described weight."""
    described = dict(description)
    for prefix, child in children(description).items():
        described[prefix[:-1]] = describe_real_signs(child, sides)
    for side in sides if description["kind"] == Rotated.kind else ():
        told = description[side]
        if told is not None and told["map"] == ORTHOGONAL:
            described[side] = {**told, "map": SCALED, "dtype": dtype_name(SIGN_DTYPE), "divides": side == "output"}
    return described


def sign_vectors(description: Mapping[str, Any]) -> list[str]:
    """Names of the stored tensors `[size]` of the real vectors of rotations."""
    own = [
        f"{side}_factors"
        for side in (SIDES if description["kind"] == Rotated.kind else ())
        if description[side] is not None and description[side]["map"] == SCALED
    ]
    return own + [prefix + name for prefix, child in children(description).items() for name in sign_vectors(child)]


def _tensor(name: str, entry: tuple[tuple[int, ...], torch.dtype], tensors: Mapping[str, Tensor]) -> Tensor:
    """That of this name; or what the signs are that stand in its place."""
    if name in tensors:
        return tensors[name]
    (size,), dtype = entry
    return 1 - 2 * unpack(tensors[name.removesuffix("factors") + "signs"], 1, size).to(dtype)
