"""`x · Wᵀ` for up to 16 tokens from weights of which two of every four inputs are kept, by the sparse matrix unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cuda import stream
from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked, Shape

#: Of the layout; a device copy of another version is thrown away and made again.
VERSION = 1

#: Inputs that share a scale, as the kernel wants them; larger groups repeat theirs in every chunk.
GROUPS = (32, 64, 128, 256)

SCALES = {torch.float16: 0, torch.bfloat16: 1}


@dataclass(frozen=True, eq=False)
class DeviceTwoOfFour:
    """A 2:4 weight as the kernels read it.

    Attributes:
        bits: of a stored code, 4; or 16: values.
        group: inputs that share a scale, one of `GROUPS`.
        scale_dtype: float16 or bfloat16; that of the values for 16 bits.
        zeros: whether zero points are stored.
        chunked: operands, places, scales, zero points.
    """

    bits: int
    group: int
    scale_dtype: torch.dtype
    zeros: bool
    chunked: Chunked


def kernel(weight: DeviceTwoOfFour) -> tuple[str, dict[str, int]]:
    """Source of its kernels, and what that wants fixed."""
    return "two_of_four.cu", {
        "BITS": weight.bits, "GROUP": weight.group, "SCALE": SCALES[weight.scale_dtype], "ZEROS": int(weight.zeros),
    }  # fmt: skip


def multiply(x: Tensor, weight: DeviceTwoOfFour, bias: Tensor | None, y: Tensor, shape: Shape | None = None) -> Tensor:
    """As `stream.multiply`; values must have the dtype of `x`."""
    return stream.multiply(*kernel(weight), x, weight.chunked, bias, y, shape)


def encode_values(kept: Tensor, places: Tensor) -> DeviceTwoOfFour:
    """From kept values, bf16 or fp16, and their places among their four, `[out, in / 2]` both."""
    tensors = [_operands(_padded(kept, 0).view(torch.int16)).view(torch.uint8), _places(places)]
    return DeviceTwoOfFour(16, GROUPS[-1], kept.dtype, False, _chunked(kept.shape, tensors))


def encode_codes(codes: Tensor, places: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> DeviceTwoOfFour:
    """From 4-bit codes.

    Args:
        codes: that are kept, `[out, in / 2]` uint8.
        places: among their four, likewise.
        scales: `[out, groups]` float16 or bfloat16, one for each `group` inputs.
        zeros: `[out, groups]` uint8; None on a symmetric grid.
        group: 32, 64, 128 or whole times 256 inputs.
    """
    width = min(group, CHUNK)
    pairs = _operands(_padded(codes, 0).to(torch.int32))  # tile, chunk, step, lane, element, kept
    words = (pairs << _shifts(codes.device)).sum((-2, -1), dtype=torch.int32)
    words = words.unflatten(2, (2, 4)).transpose(-1, -2).contiguous()
    tensors = [words.view(torch.uint8), _places(places), put_groups(scales, group, 2 * codes.shape[1])]
    if zeros is not None:
        tensors.append(put_groups(zeros, group, 2 * codes.shape[1]))
    return DeviceTwoOfFour(4, width, scales.dtype, zeros is not None, _chunked(codes.shape, tensors))


def _padded(kept: Tensor, fill: int) -> Tensor:
    """`[rows, inputs / 2]` with rows in whole tiles and inputs in whole chunks."""
    return torch.nn.functional.pad(kept, (0, -kept.shape[1] % (CHUNK // 2), 0, -len(kept) % ROWS), value=fill)


def _operands(kept: Tensor) -> Tensor:
    """`[rows, inputs / 2]` to tile, chunk, step, lane, element of the operand, kept neighbour."""
    tiles, chunks = kept.shape[0] // ROWS, kept.shape[1] * 2 // CHUNK
    # tile, half, row, chunk, step, high four, part, neighbour → tile, chunk, step, row, part, high four, half, neighbour
    split = kept.view(tiles, 2, 8, chunks, CHUNK // 32, 2, 4, 2).permute(0, 3, 4, 2, 6, 5, 1, 7)
    return split.reshape(tiles, chunks, CHUNK // 32, 32, 4, 2).contiguous()


def _places(places: Tensor) -> Tensor:
    """`[rows, inputs / 2]` to `[tiles, chunks, 32, 16]` uint8: a word of every lane for each two steps."""
    places = _padded(places, 0)
    places.view(len(places), -1, 2)[..., 1] |= (places.view(len(places), -1, 2).sum(-1) == 0).to(places.dtype)  # of padding
    tiles, chunks = places.shape[0] // ROWS, places.shape[1] * 2 // CHUNK
    # tile, half, row, chunk, two steps, step, half of the step, four, neighbour → tile, chunk, row, step, its half, two steps, …
    split = places.view(tiles, 2, 8, chunks, CHUNK // 64, 2, 2, 8).permute(0, 3, 2, 5, 6, 4, 1, 7)
    words = (split.to(torch.int64) << torch.arange(0, 16, 2, device=places.device)).sum(-1)
    words = words[..., 0] | words[..., 1] << 16
    words = words.where(words < 2**31, words - 2**32).to(torch.int32)
    return words.reshape(tiles, chunks, 32, CHUNK // 64).contiguous().view(torch.uint8)


def put_groups(values: Tensor, group: int, inputs: int) -> Tensor:
    """`[out, groups]` as bytes of tile, chunk, group, row, half; a group larger than a chunk is repeated."""
    if group > CHUNK:
        each = torch.arange(0, inputs, CHUNK, device=values.device).div(group, rounding_mode="floor")
        values, group = values[:, each], CHUNK
    per_chunk = CHUNK // group
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % per_chunk, 0, -len(values) % ROWS))
    split = values.view(-1, 2, 8, values.shape[1] // per_chunk, per_chunk).permute(0, 3, 4, 2, 1)
    return split.contiguous().view(torch.uint8)


def take_groups(lanes: Tensor) -> Tensor:
    """The inverse, from `[tile, chunk, group, row, half]`; padding and repetitions stay."""
    return lanes.permute(0, 4, 3, 1, 2).reshape(len(lanes) * ROWS, -1)


def _chunked(shape: torch.Size, tensors: list[Tensor]) -> Chunked:
    chunks = torch.cat([each.flatten(2) for each in tensors], -1)
    arrivals = torch.zeros(len(chunks), dtype=torch.int32, device=chunks.device)
    return Chunked(shape[0], 2 * shape[1], chunks, arrivals, segment=1)


def decode(weight: DeviceTwoOfFour) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The inverse: kept codes uint8 (or values) and their places among their four, `[out, in / 2]`; scales, and zeros if any."""
    chunked, groups = weight.chunked, CHUNK // weight.group
    tiles, chunks, _ = chunked.chunks.shape
    steps, width = CHUNK // 32, 512 * (CHUNK // 32 if weight.bits == 16 else CHUNK // 128)
    words = chunked.chunks[..., :width].contiguous().view(torch.int32)
    if weight.bits == 16:
        pairs = words.view(torch.int16).view(tiles, chunks, steps, 32, 4, 2)
    else:
        words = words.view(tiles, chunks, 2, 32, 4).transpose(-1, -2).reshape(tiles, chunks, steps, 32, 1, 1)
        pairs = (words >> _shifts(words.device) & 15).to(torch.uint8)
    # tile, chunk, step, row, part, high four, half, neighbour → tile, half, row, chunk, step, high four, part, neighbour
    split = pairs.view(tiles, chunks, steps, 8, 4, 2, 2, 2).permute(0, 6, 3, 1, 2, 5, 4, 7)
    kept = split.reshape(tiles * ROWS, -1)[: chunked.rows, : chunked.inputs // 2].contiguous()
    kept = kept.view(weight.scale_dtype) if weight.bits == 16 else kept
    named = chunked.chunks[..., width : width + 512].contiguous().view(torch.int32).view(tiles, chunks, 8, 2, 2, CHUNK // 64, 1)
    places = named >> torch.arange(0, 32, 2, device=named.device, dtype=torch.int32) & 3
    # tile, chunk, row, step, half of the step, two steps, half, place → tile, half, row, chunk, two steps, step, its half, place
    places = places.view(tiles, chunks, 8, 2, 2, CHUNK // 64, 2, 8).permute(0, 6, 2, 1, 5, 3, 4, 7)
    places = places.reshape(tiles * ROWS, -1)[: chunked.rows, : chunked.inputs // 2].contiguous()
    numbers, at = [], width + 512
    for dtype, wanted in ((weight.scale_dtype, weight.bits != 16), (torch.uint8, weight.zeros)):
        if wanted:
            size = groups * ROWS * dtype.itemsize
            lanes = chunked.chunks[..., at : at + size].contiguous().view(dtype).view(tiles, chunks, groups, 8, 2)
            numbers.append(take_groups(lanes)[: chunked.rows])
            at += size
    return kept, places, numbers


def _shifts(device: torch.device) -> Tensor:
    """Of the codes in a word, element of the operand by kept neighbour."""
    return torch.arange(0, 16, 4, device=device, dtype=torch.int32)[:, None] + torch.tensor(
        [0, 16], dtype=torch.int32, device=device
    )


def group_of(codes: Mapping[str, Any]) -> int:
    """Inputs that share a scale of so described codes; whole chunks where a row has one scale."""
    inputs, group = codes["shape"][1], codes["group_size"]
    return -(-inputs // CHUNK) * CHUNK if group is None or group >= inputs else int(group)


def reason_against(description: Mapping[str, Any]) -> str:
    """Why the kernel does not read a weight so described; "" if it does."""
    if description["kind"] != "masked" or description["pattern"] != "2:4" or description["mask"] == "implied":
        return "for weights of which 2:4 are stored with their mask"
    inner = description["values"]
    if inner["kind"] == "dense":
        return "" if inner["dtype"] in ("bfloat16", "float16") else f"for values in 16 bits, not {inner['dtype']}"
    if inner["kind"] != "integer" or inner["bits"] != 4:
        return f"for values or 4-bit integer codes, not {inner.get('bits', '')} bits {inner['kind']}"
    group = group_of(inner)
    if inner["group_index"] or inner["scale_dtype"] == "float32":
        return "for groups of consecutive inputs with scales in 16 bits"
    if group not in GROUPS and group % CHUNK:
        return f"for groups of 32, 64, 128 or whole times 256 inputs, or whole rows, not {group}"
    return ""
