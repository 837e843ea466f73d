"""Sign vectors of rotations inside packed weights: where they lie, and how they become real vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.finetune.strips import children
from featherweight.models.axis import ORTHOGONAL, SCALED
from featherweight.models.transforms import Hadamard, ScaledHadamard
from featherweight.packed.base import PackedWeight, from_tensors, layout_of
from featherweight.packed.maps import description_of, map_layout, read_map, write_map
from featherweight.packed.rotated import SIDES, Rotated

#: In which real vectors are stored.
SIGN_DTYPE = torch.float16


def real_signs(weight: PackedWeight) -> PackedWeight:
    """The same weight, bit for bit, with the signs of every rotation stored as real vectors (QuIP#, section 5).

    Of an input's rotation `H diag(s)` the vector is `s`; of an output's, which is undone, it is that of `diag(s) Hᵀ`.
    """
    description, tensors = _real(weight.description(), weight.tensors())
    return from_tensors(description, tensors)


def sign_vectors(description: Mapping[str, Any]) -> list[str]:
    """Names of the stored tensors `[size]` of the real vectors of rotations."""
    own = [
        f"{side}_factors"
        for side in (SIDES if description["kind"] == Rotated.kind else ())
        if description[side] is not None and description[side]["map"] == SCALED
    ]
    return own + [prefix + name for prefix, child in children(description).items() for name in sign_vectors(child)]


def _real(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    described, stored = dict(description), dict(tensors)
    for prefix, child in children(description).items():
        inside = {name: stored.pop(prefix + name) for name in layout_of(child)}
        described[prefix[:-1]], inside = _real(child, inside)
        stored |= {prefix + name: tensor for name, tensor in inside.items()}
    if description["kind"] != Rotated.kind:
        return described, stored
    for side in SIDES:
        told = description[side]
        if told is None or told["map"] != ORTHOGONAL:
            continue
        names = list(map_layout(told))
        signs = read_map(told, {name: stored.pop(f"{side}_{name}") for name in names})
        assert isinstance(signs, Hadamard)
        scaled = ScaledHadamard.of(signs, divides=side == "output")
        described[side] = description_of(scaled, SIGN_DTYPE)
        stored |= {f"{side}_{name}": tensor for name, tensor in write_map(scaled, SIGN_DTYPE).items()}
    return described, stored
