"""Lattice weights between rotations as the CUDA kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featherweight.grids.e8 import RESIDUAL_SCALE
from featherweight.grids.e8_codebook import codebook, small_codebook, table_on
from featherweight.kernels.bits import unpack
from featherweight.kernels.cuda import hadamard, lattice
from featherweight.kernels.cuda import lattice_layout as layout
from featherweight.models.axis import ORTHOGONAL, SCALED
from featherweight.models.hadamard import construction_named
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.low_rank import LowRank
from featherweight.packed.rotated import Rotated
from featherweight.packed.sum import Sum


def unsupported(description: Mapping[str, Any]) -> str:
    """Why the kernels cannot multiply by a weight so described; "" if they can.

    They can by `rotated(lattice)` and `rotated(sum(lattice, low_rank))` with 4-bit symmetric factors and a rotated input; the
    output's signs may be real, see `output_factors`.
    """
    if description["kind"] != "rotated":
        return "only lattices between rotations are written"
    terms = terms_of(description["inner"])
    if terms[0]["kind"] != "lattice" or len(terms) > 2:
        return "between the rotations a lattice and at most one low-rank term are written"
    if description["input"] is None:
        return "inputs that are not rotated are not written"
    for side in ("input", "output"):
        reason = _unsupported_map(description[side], side)
        if reason:
            return f"{side}: {reason}"
    return _unsupported_term(terms[1]) if len(terms) == 2 else ""


def terms_of(inner: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Descriptions of the terms of a sum, or of the one thing that is no sum."""
    return [term for name, term in inner.items() if name.startswith("terms_")] if inner["kind"] == "sum" else [inner]


def output_factors(weight: Rotated) -> Tensor | None:
    """What the outputs are multiplied by after they are rotated back, `[out]` float32, where the output's signs are real."""
    factors = weight.stored.get("output_factors")
    return None if factors is None else factors.to(torch.float32)


def _unsupported_map(described: Mapping[str, Any] | None, side: str) -> str:
    if described is None:
        return ""
    last = side == "output" and described["map"] == SCALED and described["divides"] and not described["inverted"]
    if described["map"] != ORTHOGONAL and not last:
        return "only Hadamard rotations are written"
    made = construction_named(described["made"])
    return hadamard.unsupported(made.factors, made.twos, made.size, described["block"] == described["size"])


def _unsupported_term(term: Mapping[str, Any]) -> str:
    if term["kind"] != "low_rank":
        return f"a {term['kind']} term is not written"
    for side in ("left", "right"):
        factor = term[side]
        if (factor["kind"], factor.get("bits"), factor.get("symmetric")) != ("integer", 4, True):
            return "factors must be 4-bit symmetric integers"
        if factor["group_index"] or (factor["group_size"] or 16) % 16 or factor["scale_dtype"] != "float16":
            return "factors must have float16 scales for groups of a multiple of 16"
    return ""


def to_device(weight: Rotated) -> lattice.DeviceRotated:
    """The same weight in the kernels' layouts, on the stored tensors' device; see `unsupported`."""
    inner = weight.inner
    terms = inner.terms if isinstance(inner, Sum) else (inner,)
    assert isinstance(terms[0], Lattice)
    maps = {side: _rotation(weight, side) for side in ("input", "output")}
    assert maps["input"] is not None
    if maps["output"] is not None:  # outputs are mapped back
        described = weight.described["output"]
        maps["output"] = replace(maps["output"], inverted=not described["inverted"], factor=_factor(weight, "output", True))
    rounded = _lattice(terms[0])
    if len(terms) == 1:
        return lattice.DeviceRotated(rounded, maps["input"], maps["output"])
    term = terms[1]
    assert isinstance(term, LowRank)
    left, right = _codes(term.left), _codes(term.right)
    outer = lattice.DeviceLeft(
        -(-term.rank // layout.RANKS) * layout.RANKS,
        _group(term.left),
        layout.encode_left(left),
        layout.encode_left_scales(_scales(term.left)),
    )
    return lattice.DeviceRotated(
        replace(rounded, left=outer), maps["input"], maps["output"],
        hadamard.DeviceRight(term.rank, _group(term.right), layout.encode_right(right), _scales(term.right)),
    )  # fmt: skip


def _lattice(weight: Lattice) -> lattice.DeviceLattice:
    stored, bits, device = weight.stored, weight.bits, weight.stored["codes"].device
    small = table_on(small_codebook, device) if bits == 3 else None
    return lattice.DeviceLattice(
        *weight.shape, bits, layout.encode_codes(stored["codes"], stored.get("residual")),
        layout.tables(table_on(codebook, device), small), stored["scale"], RESIDUAL_SCALE.get(bits, 1.0),
    )  # fmt: skip


def _rotation(weight: Rotated, side: str) -> hadamard.DeviceRotation | None:
    described = weight.described[side]
    if described is None:
        return None
    twos = construction_named(described["made"]).twos
    signs = weight.stored.get(f"{side}_signs")
    if signs is None:  # real ones, which follow
        signs = torch.zeros(-(-described["size"] // 8), dtype=torch.uint8, device=weight.stored[f"{side}_factors"].device)
    return hadamard.DeviceRotation(described["size"], twos, described["inverted"], signs, _factor(weight, side, False))


def _factor(weight: Rotated, side: str, mapped_back: bool) -> Tensor | None:
    """Of the construction's factor, or of its transpose where the inverse is taken."""
    described = weight.described[side]
    made = construction_named(described["made"])
    if not made.factors:
        return None
    matrix = replace(made, twos=0).matrix()
    transposed = described["inverted"] != mapped_back
    return layout.encode_factor(matrix.T if transposed else matrix).to(next(iter(weight.stored.values())).device)


def _codes(factor: PackedWeight) -> Tensor:
    assert isinstance(factor, Integer)
    return unpack(factor.codes, 4, factor.inputs)


def _scales(factor: PackedWeight) -> Tensor:
    assert isinstance(factor, Integer)
    return factor.scales.to(torch.float16)


def _group(factor: PackedWeight) -> int:
    assert isinstance(factor, Integer)
    return factor.group_size or -(-factor.inputs // 16) * 16
