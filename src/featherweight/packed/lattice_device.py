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
from featherweight.kernels.cuda import driver, hadamard, lattice
from featherweight.kernels.cuda import lattice_layout as layout
from featherweight.kernels.cuda.lattice_blocks import LANE_BITS, DeviceBlocks, near_bits
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
    blocks = _blocks(weight)
    order = None if blocks is None else layout.block_order(blocks.size >> blocks.twos, blocks.twos, blocks.near)
    rounded = replace(_lattice(terms[0], order), blocks=blocks)
    if len(terms) == 1:
        return lattice.DeviceRotated(rounded, maps["input"], maps["output"])
    assert isinstance(terms[1], LowRank)
    rounded = replace(rounded, left=_left(terms[1], order))
    right = terms[1].right
    codes, scales, group = _codes(right), _scales(right), _group(right)
    if blocks is not None and (group % 64 == 0 or group >= right.shape[1]):
        group = -(-group // 64) * 64
        ranks = lattice.DeviceRanks(group, layout.encode_ranks(codes), layout.encode_left_scales(scales))
        return lattice.DeviceRotated(replace(rounded, ranks=ranks), maps["input"], maps["output"])
    term = hadamard.DeviceRight(len(codes), group, layout.encode_right(codes), scales)
    return lattice.DeviceRotated(rounded, maps["input"], maps["output"], term)


def _blocks(weight: Rotated) -> DeviceBlocks | None:
    """The output's rotation for blocks of the product, where it can be cut so."""
    described = weight.described["output"]
    if described is None or described["inverted"]:
        return None
    made = construction_named(described["made"])
    signs = _signs(weight, "output")
    near = near_bits(made.size, made.twos, driver.processors(signs.device))
    if near is None:
        return None
    matrix = replace(made, twos=near - min(near, LANE_BITS)).matrix()
    return DeviceBlocks(made.size, made.twos, near, signs, layout.encode_signs(matrix.T).to(signs.device))


def _left(term: LowRank, order: Tensor | None) -> lattice.DeviceLeft:
    codes = _codes(term.left)
    return lattice.DeviceLeft(
        -(-term.rank // layout.RANKS) * layout.RANKS,
        _group(term.left),
        layout.encode_left(codes if order is None else codes[:, order.to(codes.device)]),
        layout.encode_left_scales(_scales(term.left)),
    )


def _lattice(weight: Lattice, order: Tensor | None) -> lattice.DeviceLattice:
    bits, device = weight.bits, weight.stored["codes"].device
    stored = {
        name: each if order is None or name == "scale" else each[order.to(device)] for name, each in weight.stored.items()
    }
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
    return hadamard.DeviceRotation(
        described["size"], twos, described["inverted"], _signs(weight, side), _factor(weight, side, False)
    )


def _signs(weight: Rotated, side: str) -> Tensor:
    signs = weight.stored.get(f"{side}_signs")
    if signs is not None:
        return signs
    size = -(-weight.described[side]["size"] // 8)  # real ones follow
    return torch.zeros(size, dtype=torch.uint8, device=weight.stored[f"{side}_factors"].device)


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
