"""Lattice weights between rotations with random codes, for benchmarks."""

from __future__ import annotations

import torch

from featherweight.models.transforms import Hadamard
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.low_rank import LowRank
from featherweight.packed.rotated import Rotated
from featherweight.packed.sum import Sum


def random_weight(rows: int, inputs: int, bits: int, rank: int, device: str, seed: int = 0) -> Rotated:
    """An `[rows, inputs]` weight of `bits` bits and, with a rank, 4-bit factors in groups of 64; rotated on both sides."""
    draw = torch.Generator(device).manual_seed(seed)

    def codes(*shape: int, most: int = 2**16) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=draw, device=device, dtype=torch.int32)

    stored = {"codes": codes(rows, -(-inputs // 8)).to(torch.int16), "scale": torch.full((1,), 0.02, device=device)}
    if bits > 2:
        stored["residual"] = codes(rows, -(-inputs // 8)).to(torch.int16 if bits == 4 else torch.uint8)
    weight: Lattice | Sum = Lattice(Lattice.describe((rows, inputs), bits), stored)
    if rank:
        sides = []
        for width in (rows, inputs):
            scales = (torch.rand(rank, -(-width // 64), generator=draw, device=device) * 0.02 + 0.002).to(torch.float16)
            factor = codes(rank, width, most=16).to(torch.uint8)
            sides.append(Integer.from_codes(factor, scales, None, 4, 64))
        weight = Sum((weight, LowRank(*sides)))
    signs = [(1 - 2 * codes(size, most=2)).to(torch.int8) for size in (inputs, rows)]
    return Rotated.of(weight, Hadamard(signs[0], inputs), Hadamard(signs[1], rows))
