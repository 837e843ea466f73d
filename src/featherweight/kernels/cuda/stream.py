"""Launching the kernels whose weights lie in chunks: how the work is cut, and what a launch needs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda import driver

#: Tokens of one launch, outputs of a tile, inputs of a chunk, numbers between two tokens in shared memory.
MOST_TOKENS, ROWS, CHUNK, PADDING = 16, 16, 256, 32

#: Buffers in which the warps of a block put down their sums, by tokens in eights.
BUFFERS = {1: 4, 2: 2}

#: Warps of a block that multiply, warps that collect, chunks in flight for each, blocks on a multiprocessor: the first that fits is
#: taken.
CUTS = ((8, 2, 4, 2), (8, 2, 3, 2), (16, 2, 4, 1), (16, 2, 3, 1), (16, 2, 2, 1), (14, 2, 2, 1), (12, 2, 2, 1), (8, 2, 2, 1))

#: Whole tiles to a block are worth so much more work for some.
UNEVEN = 1.1

ACTIVATIONS = {torch.bfloat16: 0, torch.float16: 1}


class Work(ctypes.Structure):
    """`Work` of `stream.cuh`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "chunks", "chunk_starts", "x", "y", "bias", "gather", "list_starts", "records", "partial", "arrivals"
        )),
        *((name, ctypes.c_int) for name in (
            "rows", "tiles", "tile_chunks", "split_chunks", "segment_chunks", "whole_tiles",
            "inputs", "tokens", "x_stride", "y_stride", "slots",
        )),
        ("factor", ctypes.c_float),
    )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How the work is cut.

    Attributes:
        warps: of a block that multiply.
        collectors: warps of a block that add up the sums of the others.
        stages: chunks that a warp has in flight.
        resident: blocks on a multiprocessor.
        split_chunks: chunks of a tile whose activations a block holds.
        blocks: of the launch.
        whole_tiles: no tile is cut between blocks.
        slots: most blocks that share a tile.
        shared_bytes: of a block.
    """

    warps: int
    collectors: int
    stages: int
    resident: int
    split_chunks: int
    blocks: int
    whole_tiles: bool
    slots: int
    shared_bytes: int


@cache
def shape_of(
    tiles: int, chunks: int, chunk_bytes: int, single_bytes: int, tokens: int, segment: int, processors: int, shared: int,
    cuts: tuple[tuple[int, int, int, int], ...] = CUTS,
) -> Shape:  # fmt: skip
    """The cut for so many tiles of so many chunks on a device of so many processors with so many bytes of shared memory.

    A block holds the activations of all chunks of a tile where they fit beside the chunks in flight, else those of as few
    splits as possible, each whole segments.

    Raises:
        FeatherweightError: a segment that does not fit.
    """
    segments = -(-chunks // segment)
    for splits in range(1, segments + 1):
        split = min(chunks, -(-segments // splits) * segment)
        for warps, collectors, stages, resident in cuts:
            need = _shared_bytes(warps, stages, chunk_bytes, tokens, split, single_bytes)
            if need <= shared // resident - 1024:
                most = max(2 * -(-chunks // split), min(resident * processors, tiles * chunks // warps))
                rounds = -(-tiles // most)
                whole = split == chunks and rounds * most <= UNEVEN * tiles
                blocks = -(-tiles // rounds) if whole else most
                slots = 1 if whole else _slots(tiles, chunks, split, blocks)
                return Shape(warps, collectors, stages, resident, split, blocks, whole, slots, need)
    raise FeatherweightError(
        "activations do not fit shared memory", found=f"{tokens} tokens", expected=f"at most {shared} bytes"
    )


def _shared_bytes(warps: int, stages: int, chunk_bytes: int, tokens: int, split: int, single_bytes: int) -> int:
    columns = -(-tokens // 8)
    pairs = 4 if columns == 2 else -(-tokens // 2)
    ring = warps * stages * (chunk_bytes + 8)
    exchange = BUFFERS[columns] * (16 + warps * columns * 8 * pairs * 16)
    zeros = 2 * CHUNK + split * single_bytes if tokens == 1 and single_bytes else 0
    factors = 32 * columns * max(2, split)  # peaks and factors, or a factor for each chunk
    return ring + exchange + factors + 2 * tokens * (split * (CHUNK + CHUNK // 16) + PADDING) + zeros


def _slots(tiles: int, chunks: int, split: int, blocks: int) -> int:
    """Blocks that may share a tile: those of every split."""
    slots = 0
    for first in range(0, chunks, split):
        length = min(split, chunks - first)
        own = blocks * (first + length) // chunks - blocks * first // chunks
        slots += max(0, length - 2) // max(1, length * tiles // own) + 2
    return slots


@dataclass(frozen=True, eq=False)
class Chunked:
    """What every storage in chunks hands over.

    Attributes:
        rows, inputs: of the weight.
        chunks: `[tiles, chunks, bytes]` uint8; or one after the other, where they differ in length.
        arrivals: `[tiles]` int32, zero between launches.
        chunk_starts: of chunks that differ in length, in 16s of bytes, and the end; or None.
        gather: input at every place, int32, `inputs` for none; or None.
        list_starts, records: of a sparse list, int32; or None.
        segment: chunks that are not split between blocks.
        factor: of all sums.
        slot_bytes: room for the longest of chunks that differ in length.
        single_bytes: of shared memory that the inputs of a chunk take beyond their own with one token, by columns of groups; or 0.
    """

    rows: int
    inputs: int
    chunks: Tensor
    arrivals: Tensor
    chunk_starts: Tensor | None = None
    gather: Tensor | None = None
    list_starts: Tensor | None = None
    records: Tensor | None = None
    segment: int = 16
    factor: float = 1.0
    slot_bytes: int = 0
    single_bytes: int = 0

    @property
    def cut(self) -> tuple[int, int, int, int]:
        """Tiles, chunks of a tile, bytes of the longest chunk, `single_bytes`."""
        if self.chunk_starts is None:
            tiles, chunks, size = self.chunks.shape
            return tiles, chunks, size, self.single_bytes
        tiles = len(self.arrivals)
        return tiles, (len(self.chunk_starts) - 1) // tiles, self.slot_bytes, self.single_bytes

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight."""
        parts = (self.chunks, self.chunk_starts, self.gather, self.list_starts, self.records)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def multiply(
    source: str, constants: Mapping[str, int], x: Tensor, weight: Chunked, bias: Tensor | None, y: Tensor,
    shape: Shape | None = None, overlapped: bool = True,
) -> Tensor:  # fmt: skip
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]` for up to 16 tokens.

    Args:
        source: file of the storage's kernel.
        constants: what that file wants fixed.
        x: `[tokens, in]` bf16 or fp16, rows contiguous and 16 bytes aligned.
        bias: `[out]` in the dtype of `x`.
        y: `[tokens, out]`, written.
        overlapped: let the launch begin before the kernel ahead of it is done.
    """
    tiles, chunks, *_ = weight.cut
    gather, inputs, tokens = weight.gather, weight.inputs, x.shape[0]
    if gather is not None and tokens > 1:  # once, instead of in every block
        x = (torch.nn.functional.pad(x, (0, 1)) if len(gather) > inputs else x).index_select(1, gather)
        gather, inputs = None, x.shape[1]
    shape = shape or default_shape(weight, tokens)
    columns = -(-tokens // 8)
    fixed = {
        "ACTIVATION": ACTIVATIONS[x.dtype], "COLUMNS": columns, "WARPS": shape.warps, "COLLECTORS": shape.collectors,
        "STAGES": shape.stages, "RESIDENT": shape.resident, "SINGLE": int(tokens == 1), **constants,
    }  # fmt: skip
    function = driver.load(source, "multiply_stream", driver.constants_of(fixed), x.device)
    partial = torch.empty(tiles * shape.slots * columns * 128, dtype=torch.float32, device=x.device)
    pointers = (
        weight.chunks,
        weight.chunk_starts,
        x,
        y,
        bias,
        gather,
        weight.list_starts,
        weight.records,
        partial,
        weight.arrivals,
    )
    work = Work(
        *(0 if each is None else each.data_ptr() for each in pointers),
        weight.rows, tiles, chunks, shape.split_chunks, weight.segment, int(shape.whole_tiles),
        inputs, tokens, x.stride(0), y.stride(0), shape.slots, weight.factor,
    )  # fmt: skip
    threads = 32 * (shape.warps + shape.collectors)
    function.launch((shape.blocks, 1, 1), (threads, 1, 1), shape.shared_bytes, [work], overlapped=overlapped)
    return y


def default_shape(weight: Chunked, tokens: int) -> Shape:
    """The cut on the weight's device."""
    processors, shared = limits(weight.chunks.device)
    return shape_of(*weight.cut, tokens, weight.segment, processors, shared)


@cache
def limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors of a device, and bytes of shared memory that a block can have."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin
