"""`x · Wᵀ` for up to 16 tokens from 4-bit codes of which any are kept, a bit for each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cuda import stream
from featherweight.kernels.cuda.bitmap import mask_bits
from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked, Shape
from featherweight.kernels.cuda.two_of_four import GROUPS, SCALES, group_of, put_groups, take_groups

#: Of the layout; a device copy of another version is thrown away and made again.
VERSION = 1

#: Bytes of a chunk's starts, and of those and its bits.
STARTS, HEAD = 32, 32 + 512

#: Bytes after the last chunk: a lane reads some that are not its own.
BEYOND = 32

#: Room for the longest chunk is rounded up to this, in bytes, so that few kernels are compiled.
ROOM = 256

#: Share of weights kept above which all codes are hardly more.
MOST_KEPT = 0.7


@dataclass(frozen=True, eq=False)
class DeviceBitmapCodes:
    """Sparse 4-bit codes as the kernels read them.

    Attributes:
        group: inputs that share a scale, one of `GROUPS`.
        scale_dtype: float16 or bfloat16.
        zeros: whether zero points are stored.
        chunked: chunks of bits, scales, zero points, codes.
    """

    group: int
    scale_dtype: torch.dtype
    zeros: bool
    chunked: Chunked


def kernel(weight: DeviceBitmapCodes) -> tuple[str, dict[str, int]]:
    """Source of its kernels, and what that wants fixed."""
    return "bitmap_codes.cu", {
        "GROUP": weight.group, "SCALE": SCALES[weight.scale_dtype], "ZEROS": int(weight.zeros), "SLOT_BYTES": weight.chunked.cut[2],
    }  # fmt: skip


def multiply(x: Tensor, weight: DeviceBitmapCodes, bias: Tensor | None, y: Tensor, shape: Shape | None = None) -> Tensor:
    """As `stream.multiply`."""
    return stream.multiply(*kernel(weight), x, weight.chunked, bias, y, shape)


def encode(codes: Tensor, mask: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> DeviceBitmapCodes:
    """From codes of which those are kept where `mask` is true.

    Args:
        codes, mask: `[out, in]` uint8 and bool.
        scales: `[out, groups]` float16 or bfloat16, one for each `group` inputs.
        zeros: `[out, groups]` uint8; None on a symmetric grid.
        group: 32, 64, 128 or whole times 256 inputs.
    """
    device, (rows, inputs) = mask.device, mask.shape
    there, kept = (_to_windows(each) for each in (mask, codes ^ 8))
    tiles, chunks = there.shape[:2]
    # tile, chunk, block, lane, window, element → tile, chunk, lane, block, element, window
    bits = there.permute(0, 1, 3, 2, 5, 4).flatten(-2).to(torch.int64)
    words = (bits << torch.arange(32, device=device)).sum(-1)
    words = words.where(words < 2**31, words - 2**32).to(torch.int32).contiguous()
    counts = there.view(tiles, chunks, 4, 4, -1).sum(-1)  # tile, chunk, block, eight lanes
    before = (counts.flatten(2).cumsum(-1) - counts.flatten(2)).view(counts.shape).to(torch.int16)
    tables = [before.transpose(2, 3).contiguous(), words, put_groups(scales, group, inputs)]
    if zeros is not None:
        tables.append(put_groups(zeros, group, inputs))
    heads = torch.cat([each.view(torch.uint8).flatten(2) for each in tables], -1).view(tiles * chunks, -1)
    blob, starts = _blob(heads, _in_order(kept)[_in_order(there)], counts.sum((-1, -2)).flatten())
    arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)
    slot = -(-int(starts.diff().max()) * 16 // ROOM) * ROOM
    chunked = Chunked(rows, inputs, blob, arrivals, starts.to(torch.int32), segment=1, factor=1 / 16, slot_bytes=slot)
    return DeviceBitmapCodes(min(group, CHUNK), scales.dtype, zeros is not None, chunked)


def decode(weight: DeviceBitmapCodes) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The inverse: codes uint8, 8 where none is kept, and the mask, `[out, in]` both; scales, and zeros if any."""
    chunked = weight.chunked
    assert chunked.chunk_starts is not None
    (tiles, chunks, *_), device, blob = chunked.cut, chunked.chunks.device, chunked.chunks
    first = chunked.chunk_starts[:-1, None].long() * 16
    sizes = [CHUNK // weight.group * ROWS * size for size in (2, 1)[: 1 + weight.zeros]]
    head = HEAD + sum(sizes)
    heads = blob[first + torch.arange(head, device=device)]
    words = heads[:, STARTS:HEAD].contiguous().view(torch.int32)
    there = mask_bits(words, tiles, chunks).permute(0, 1, 3, 2, 5, 4)
    number = there.sum((-1, -2, -3, -4)).flatten()
    within = torch.arange(int(number.sum()), device=device) - (number.cumsum(0) - number).repeat_interleave(number)
    packed = blob[(first[:, 0] + head).repeat_interleave(number) + within // 2]
    kept = torch.zeros(there.shape, dtype=torch.uint8, device=device)
    kept[_in_order(there)] = packed >> (within % 2 * 4).to(torch.uint8) & 15
    kept = _in_order(kept)
    numbers, at = [], HEAD
    for dtype, size in zip((weight.scale_dtype, torch.uint8), sizes, strict=False):
        lanes = heads[:, at : at + size].contiguous().view(dtype).view(tiles, chunks, -1, 8, 2)
        numbers.append(take_groups(lanes)[: chunked.rows])
        at += size
    codes, mask = (_from_windows(each)[: chunked.rows, : chunked.inputs].contiguous() for each in (kept ^ 8, there))
    return codes, mask, numbers


def resident_bits(description: Mapping[str, Any]) -> float:
    """Bits of a weight so described on the card, for each of its entries."""
    inner, (rows, inputs) = description["values"], description["shape"]
    chunks, groups = -(-rows // ROWS) * -(-inputs // CHUNK), CHUNK // min(group_of(inner), CHUNK)
    head = HEAD + ROWS * groups * (2 if inner["symmetric"] else 3)
    of_chunk = head + 8 + 4  # half of the last 16 bytes is empty, and where the chunk lies
    return (4 * description["kept"] + 8 * chunks * of_chunk) / (rows * inputs)


def reason_against(description: Mapping[str, Any]) -> str:
    """Why the kernel does not read a weight so described; "" if it does."""
    if description["kind"] != "masked" or description["values"]["kind"] != "integer":
        return "for integer codes that are stored with a mask"
    if description["mask"] == "implied":
        return "its zeros are stored, there is no mask to be read"
    inner, (rows, inputs) = description["values"], description["shape"]
    if inner["bits"] != 4:
        return f"for codes of 4 bits, not {inner['bits']}"
    if inner["group_index"] or inner["scale_dtype"] == "float32":
        return "for groups of consecutive inputs with scales in 16 bits"
    if (group := group_of(inner)) not in GROUPS and group % CHUNK:
        return f"for groups of 32, 64, 128 or whole times 256 inputs, or whole rows, not {group}"
    if (share := description["kept"] / (rows * inputs)) > MOST_KEPT:
        return f"for up to {MOST_KEPT:.0%} of weights kept, not {share:.0%}: all codes are hardly more"
    return ""


def _blob(heads: Tensor, kept: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks one after the other, from `heads [chunks, bytes]` and `kept` codes, `number` to each; and their starts in 16s of bytes."""
    head = heads.shape[1]
    starts = torch.nn.functional.pad((-(-(2 * head + number) // 32)).cumsum(0), (1, 0))
    halves = torch.zeros(2 * (int(starts[-1]) * 16 + BEYOND), dtype=torch.uint8, device=kept.device)
    first = starts[:-1] * 16
    place = (2 * (first + head) - (number.cumsum(0) - number)).repeat_interleave(number)
    halves[place + torch.arange(len(place), device=kept.device)] = kept
    blob = halves[::2] | halves[1::2] << 4
    blob[first[:, None] + torch.arange(head, device=kept.device)] = heads
    return blob, starts


def _to_windows(values: Tensor) -> Tensor:
    """`[rows, inputs]` to tile, chunk, block of 64 inputs, lane, window, element; padding is 0."""
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % CHUNK, 0, -len(values) % ROWS))
    tiles, chunks = len(values) // ROWS, values.shape[1] // CHUNK
    # tile, half, row, chunk, block, step, high, part, byte → tile, chunk, block, row, part, half, step, high, byte
    split = values.view(tiles, 2, 8, chunks, 4, 2, 2, 4, 4).permute(0, 3, 4, 2, 7, 1, 5, 6, 8)
    both = torch.stack([split[..., 0, :, :, :].flip(-3), split[..., 1, :, :, :]], -4)
    return both.reshape(tiles, chunks, 4, 32, 4, 8)


def _from_windows(values: Tensor) -> Tensor:
    """The inverse of `_to_windows`, padding included."""
    tiles, chunks = values.shape[:2]
    both = values.view(tiles, chunks, 4, 8, 4, 2, 2, 2, 4)
    split = torch.stack([both[..., 0, :, :, :].flip(-3), both[..., 1, :, :, :]], -4)
    return split.permute(0, 5, 3, 1, 2, 6, 7, 4, 8).reshape(tiles * ROWS, chunks * CHUNK)


def _in_order(windows: Tensor) -> Tensor:
    """Elements of windows as their codes follow one another, those of the upper row the last first; its own inverse."""
    return torch.cat([windows[..., :2, :].flip(-1), windows[..., 2:, :]], -2)
