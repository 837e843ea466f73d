"""`x · Wᵀ` for up to 16 tokens from values in 16 bits of which any are kept, a bit for each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cuda import stream
from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked, Shape

#: Of the layout; a device copy of another version is thrown away and made again.
VERSION = 2

#: Half words of a chunk before its values: those before every step, and eight bits for each lane and step.
HEAD = 16 + 256

#: Half words after the last chunk: a lane reads some that are not its own.
BEYOND = 16

#: Room for the longest chunk is rounded up to this, in bytes, so that few kernels are compiled.
ROOM = 512


@dataclass(frozen=True, eq=False)
class DeviceBitmap:
    """A sparse weight as the kernels read it.

    Attributes:
        dtype: of its values, and of activations.
        chunked: chunks of bits and values.
    """

    dtype: torch.dtype
    chunked: Chunked


def kernel(weight: DeviceBitmap) -> tuple[str, dict[str, int]]:
    """Source of its kernels, and what that wants fixed."""
    return "bitmap.cu", {"SLOT_BYTES": weight.chunked.cut[2]}


def multiply(x: Tensor, weight: DeviceBitmap, bias: Tensor | None, y: Tensor, shape: Shape | None = None) -> Tensor:
    """As `stream.multiply`; values must have the dtype of `x`."""
    return stream.multiply(*kernel(weight), x, weight.chunked, bias, y, shape)


def encode(values: Tensor, mask: Tensor) -> DeviceBitmap:
    """From `values [out, in]`, bf16 or fp16, kept where `mask` is true."""
    kept, there = (_to_operands(each) for each in (values.view(torch.int16), mask))
    tiles = there.shape[0]
    counts = there.sum((-1, -2))  # tile, chunk, step
    before = (counts.cumsum(-1) - counts).to(torch.int16)
    # tile, chunk, four steps, step, lane, element → tile, chunk, lane, four steps, element, step
    bits = there.unflatten(2, (4, 4)).permute(0, 1, 4, 2, 5, 3).flatten(-2).to(torch.int64)
    words = (bits << torch.arange(32, device=mask.device)).sum(-1)
    words = words.where(words < 2**31, words - 2**32).to(torch.int32).contiguous().view(torch.int16).flatten(2)
    heads = torch.cat([before, words], -1).view(-1, HEAD)
    number = counts.sum(-1).flatten()
    sizes = -(-(HEAD + number) // 8)
    starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    blob = torch.zeros(int(starts[-1]) * 8 + BEYOND, dtype=torch.int16, device=mask.device)
    first = starts[:-1] * 8
    place = (first + HEAD - (number.cumsum(0) - number)).repeat_interleave(number)
    blob[place + torch.arange(len(place), device=mask.device)] = kept[there]
    blob = blob.view(torch.uint8).view(-1, 4, 2).transpose(1, 2).contiguous().view(torch.int16).flatten()
    blob[first[:, None] + torch.arange(HEAD, device=mask.device)] = heads
    arrivals = torch.zeros(tiles, dtype=torch.int32, device=mask.device)
    slot = -(-int(sizes.max()) * 16 // ROOM) * ROOM
    rows, inputs = values.shape
    table = starts.to(torch.int32)
    chunked = Chunked(rows, inputs, blob.view(torch.uint8), arrivals, table, segment=1, slot_bytes=slot)
    return DeviceBitmap(values.dtype, chunked)


def decode(weight: DeviceBitmap) -> tuple[Tensor, Tensor]:
    """The inverse: values, 0 where none is kept, and the mask, `[out, in]` both."""
    chunked = weight.chunked
    assert chunked.chunk_starts is not None
    tiles, chunks, *_ = chunked.cut
    blob, first = chunked.chunks.view(torch.int16), chunked.chunk_starts[:-1].long() * 8
    words = blob[first[:, None] + torch.arange(16, HEAD, device=blob.device)].view(torch.int32)
    there = mask_bits(words, tiles, chunks).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    blob = blob.view(torch.uint8).view(-1, 2, 4).transpose(1, 2).contiguous().view(torch.int16).flatten()
    number = there.sum((-1, -2, -3)).flatten()
    place = (first + HEAD - (number.cumsum(0) - number)).repeat_interleave(number)
    kept = torch.zeros(there.shape, dtype=torch.int16, device=blob.device)
    kept[there] = blob[place + torch.arange(len(place), device=blob.device)]
    dense, mask = (_from_operands(each)[: chunked.rows, : chunked.inputs].contiguous() for each in (kept, there))
    return dense.view(weight.dtype), mask


def mask_bits(words: Tensor, tiles: int, chunks: int) -> Tensor:
    """Bits of the words `[…]` int32 that say what is kept, the lowest first: `[tiles, chunks, 32, 4, 8, 4]`, of each lane four words."""
    bits = words.view(tiles, chunks, 32, 4, 1) >> torch.arange(32, device=words.device, dtype=torch.int32) & 1
    return bits.bool().view(tiles, chunks, 32, 4, 8, 4)


def resident_bits(description: Mapping[str, Any]) -> float:
    """Bits of a weight so described on the card, for each of its entries."""
    rows, inputs = description["shape"]
    chunks = -(-rows // ROWS) * -(-inputs // CHUNK)
    of_chunk = HEAD + 4 + 2  # in 16 bits: half of the last 16 bytes is empty, and where the chunk lies
    return 16 * (description["kept"] + chunks * of_chunk) / (rows * inputs)


def reason_against(description: Mapping[str, Any]) -> str:
    """Why the kernel does not read a weight so described; "" if it does."""
    if description["kind"] != "masked" or description["values"]["kind"] != "dense":
        return "for values that are stored with a mask"
    if description["mask"] == "implied":
        return "its zeros are stored, there is no mask to be read"
    dtype = description["values"]["dtype"]
    return "" if dtype in ("bfloat16", "float16") else f"for values in 16 bits, not {dtype}"


def _to_operands(values: Tensor) -> Tensor:
    """`[rows, inputs]` to tile, chunk, step, lane, place in the lane's operand; padding is 0."""
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % CHUNK, 0, -len(values) % ROWS))
    tiles, chunks = len(values) // ROWS, values.shape[1] // CHUNK
    # tile, half, row, chunk, step, part, high, odd → tile, chunk, step, row, part, high, half, odd
    split = values.view(tiles, 2, 8, chunks, 16, 4, 2, 2).permute(0, 3, 4, 2, 5, 6, 1, 7)
    return split.reshape(tiles, chunks, 16, 32, 8)


def _from_operands(values: Tensor) -> Tensor:
    """The inverse of `_to_operands`, padding included."""
    tiles, chunks = values.shape[:2]
    split = values.view(tiles, chunks, 16, 8, 4, 2, 2, 2).permute(0, 6, 3, 1, 2, 4, 5, 7)
    return split.reshape(tiles * ROWS, chunks * CHUNK)
