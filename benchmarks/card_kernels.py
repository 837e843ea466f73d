"""Kernels that do nothing but read, and nothing at all: the floors of a timing. Needs triton and CUDA; imported by card.py there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 2048  # int32 of a block; with 4 warps the fastest nearly everywhere on an H200


@triton.jit
def _read(source, sums, CHUNK: tl.constexpr):
    block = tl.program_id(0)
    values = tl.load(source + block.to(tl.int64) * CHUNK + tl.arange(0, CHUNK))
    tl.store(sums + block, tl.sum(values))


@triton.jit
def _nothing():
    pass


def read(source: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Reads `source`, int32 in whole chunks of 2048, once; one sum of each chunk is written, `[chunks]`."""
    _read[(source.numel() // CHUNK,)](source, sums, CHUNK=CHUNK, num_warps=4)
    return sums


def nothing(blocks: int) -> None:
    """An empty kernel of so many blocks."""
    _nothing[(blocks,)]()
