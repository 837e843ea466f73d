"""`x · Wᵀ` for up to 16 tokens straight from two-level codes with a sparse term beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cuda import stream
from featherweight.kernels.cuda.sparse_list import GROUP, MOST_PLACES, SEGMENT, SparseParts, decode_list, encode_list
from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked, Shape

#: Of the layout; a device copy of another version is thrown away and made again.
VERSION = 3

#: Place in its half of a code that was taken out of a word, of a tile's upper eight rows and of the lower; see `two_level.cuh`.
PLACES = {2: (4, 6), 3: (3, 6), 4: (4, 4)}

#: Scales are brought below 2^15 of what codes are multiplied by, so that those are fp16 numbers.
LARGEST = 15


@dataclass(frozen=True)
class TwoLevelParts:
    """A two-level weight, unpacked.

    Attributes:
        codes: `[out, in]` uint8.
        scale_codes, zero_codes: `[out, groups]` uint8.
        scale_grids, zero_grids: `[out, groups, 2]` float32, the step and the zero of every number's own grid.
        index: group of every input, `[in]` int64.
    """

    codes: Tensor
    scale_codes: Tensor
    zero_codes: Tensor
    scale_grids: Tensor
    zero_grids: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class DeviceTwoLevel:
    """A two-level weight as the kernels read it.

    Attributes:
        bits: of a code.
        second_bits: of the codes of scales and zeros, 3 or 4.
        chunked: chunks of codes, scales and zeros; the order of inputs; the sparse list.
    """

    bits: int
    second_bits: int
    chunked: Chunked


def kernel(weight: DeviceTwoLevel) -> tuple[str, dict[str, int]]:
    """Source of its kernels, and what that wants fixed."""
    listed = weight.chunked.records is not None
    return "two_level.cu", {"BITS": weight.bits, "SECOND_BITS": weight.second_bits, "LISTED": int(listed)}


def multiply(x: Tensor, weight: DeviceTwoLevel, bias: Tensor | None, y: Tensor, shape: Shape | None = None) -> Tensor:
    """As `stream.multiply`."""
    return stream.multiply(*kernel(weight), x, weight.chunked, bias, y, shape)


def encode(parts: TwoLevelParts, bits: int, second_bits: int, sparse: SparseParts | None) -> DeviceTwoLevel:
    """The device form. `second_bits` is 3 where scales and zeros have at most 3 bits, else 4."""
    rows, inputs = parts.codes.shape
    gather, groups = group_order(parts.index, inputs)
    padded = _pad_rows(parts.codes)
    columns = gather.clamp(min=0)
    codes = torch.where(gather < 0, 0, padded[:, columns]) if bool((gather < 0).any()) else padded[:, columns]
    exponent = _exponent(parts, bits)
    blobs = [
        _code_bytes(codes, bits),
        _constant_bytes(parts, groups, bits, exponent),
        _second_bytes(_take_groups(parts.scale_codes, groups), _take_groups(parts.zero_codes, groups), second_bits),
    ]
    own_order = bool((gather[:inputs] == torch.arange(inputs, device=gather.device)).all())
    starts, records = (None, None) if sparse is None else encode_list(sparse, gather, len(padded) // ROWS)
    arrivals = torch.zeros(len(padded) // ROWS, dtype=torch.int32, device=codes.device)
    order = None if own_order else torch.where(gather < 0, inputs, gather).to(torch.int32)
    single = 2 * CHUNK // GROUP + (0 if sparse is None else 2 * CHUNK)  # sums of groups as float32, activations once more
    blob = torch.cat(blobs, -1)
    chunked = Chunked(rows, inputs, blob, arrivals, None, order, starts, records, SEGMENT, 2.0**exponent, single_bytes=single)
    return DeviceTwoLevel(bits, second_bits, chunked)


def group_order(index: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Inputs group by group, each group filled up to whole 16s with -1, the whole to chunks; and the group of every 16."""
    order = index.argsort(stable=True)
    counts = torch.bincount(index)
    filled = -(-counts // GROUP) * GROUP
    total = -(-int(filled.sum()) // CHUNK) * CHUNK
    gather = torch.full((total,), -1, dtype=torch.int64, device=index.device)
    shift = (filled.cumsum(0) - filled) - (counts.cumsum(0) - counts)
    gather[torch.arange(inputs, device=index.device) + shift[index[order]]] = order
    groups = torch.full((total // GROUP,), -1, dtype=torch.int64, device=index.device)
    owners = torch.arange(len(counts), device=index.device).repeat_interleave(filled // GROUP)
    groups[: len(owners)] = owners
    return gather, groups


def code_places(bits: int) -> list[list[tuple[int, int, int, int]]]:
    """Of pair 0 … 15 of a group: `(first bit of the code, number of bits, word, bit in the half)` of every piece."""
    if bits == 4:
        return [[(0, 4, pair % 4, pair // 4 * 4)] for pair in range(16)]
    if bits == 2:
        fields = [(pair % 2, pair // 2 * 2) for pair in range(6)]
        pairs = [*fields, (0, 6), (0, 8), *((word, place + 10) for word, place in fields), (1, 6), (1, 8)]
        return [[(0, 2, word, place)] for word, place in pairs]
    fields = [(pair % 3, pair // 3 * 3) for pair in range(6)]
    pairs = [*fields, (0, 6), (2, 6), *((word, place + 9) for word, place in fields), (1, 6)]
    return [[(0, 3, word, place)] for word, place in pairs] + [[(bit, 1, bit, 15) for bit in range(3)]]


def _code_bytes(codes: Tensor, bits: int) -> Tensor:
    """`[rows, inputs]` to `[tiles, chunks, 512 · bits]` uint8."""
    tiles, chunks = codes.shape[0] // ROWS, codes.shape[1] // CHUNK
    # tile, half, row, chunk, group, lane of four, step, odd → tile, chunk, group, row, lane, half, step, odd
    split = codes.view(tiles, 2, 8, chunks, 4, 4, 8, 2).permute(0, 3, 4, 2, 5, 1, 6, 7)
    split = split.reshape(tiles, chunks, 4, 32, 16, 2).to(torch.int32)
    words = torch.zeros(*split.shape[:4], bits, dtype=torch.int32, device=codes.device)
    for pair, pieces in enumerate(code_places(bits)):
        for first, count, word, place in pieces:
            for odd in range(2):
                words[..., word] |= (split[..., pair, odd] >> first & 2**count - 1) << (place + 16 * odd)
    # tile, chunk, group, lane, word → tile, chunk, load, lane, word of the load
    lanes = words.permute(0, 1, 3, 2, 4).reshape(tiles, chunks, 32, bits, 4)
    return lanes.permute(0, 1, 3, 2, 4).contiguous().view(torch.uint8).reshape(tiles, chunks, -1)


def _constant_bytes(parts: TwoLevelParts, groups: Tensor, bits: int, exponent: int) -> Tensor:
    """`[tiles, chunks, 128]` uint8: of every group the step and minus the zero of its scales' own grid, then of its zeros'."""
    scale, zero = (_take_groups(grids[::ROWS], groups, pad=False) for grids in (parts.scale_grids, parts.zero_grids))
    step = scale[..., 0] * 2.0 ** (24 - PLACES[bits][0] - exponent)
    constants = torch.stack([step, -scale[..., 1], zero[..., 0], -zero[..., 1]], -1).to(torch.float16)
    lanes = constants.view(len(constants), -1, 4, 4, 4).transpose(2, 3)
    return lanes.reshape(len(constants), -1, CHUNK // GROUP * 4).view(torch.uint8)


def _second_bytes(scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """Codes `[rows, groups]` of scales and zeros to `[tiles, chunks, 192 or 256]` uint8."""
    split = []
    for codes in (scales, zeros):
        tiles, chunks = codes.shape[0] // ROWS, codes.shape[1] // 16
        # tile, half, row, chunk, group, lane of four → tile, chunk, row, lane, half, group
        lanes = codes.to(torch.int32).view(tiles, 2, 8, chunks, 4, 4).permute(0, 3, 2, 5, 1, 4)
        split.append(lanes.reshape(tiles, chunks, 32, 2, 4))
    s, z = split
    group = torch.arange(4, device=scales.device, dtype=torch.int32)
    if bits == 4:
        halves = [(each << 4 * group).sum(-1, dtype=torch.int32) for each in (s, z)]
        words = [half[..., 0] | half[..., 1] << 16 for half in halves]
        return torch.cat([word.contiguous().view(torch.uint8) for word in words], -1)
    half = (s << 3 * group).sum(-1, dtype=torch.int32) | z[..., 0] << 12 | (z[..., 3] >> 2) << 15
    byte = z[..., 1] | z[..., 2] << 3 | (z[..., 3] & 3) << 6
    word = (half[..., 0] | half[..., 1] << 16).contiguous()
    return torch.cat([word.view(torch.uint8), byte.to(torch.uint8).flatten(-2)], -1)


def _exponent(parts: TwoLevelParts, bits: int) -> int:
    """Power of two that is taken out of all scales."""
    step, zero = parts.scale_grids[..., 0], parts.scale_grids[..., 1]
    largest = float(torch.maximum(step.abs(), (step * (parts.scale_codes.to(torch.float32) - zero)).abs()).amax())
    return math.frexp(largest)[1] + 24 - PLACES[bits][0] - LARGEST if largest > 0 else 0


def _take_groups(values: Tensor, groups: Tensor, pad: bool = True) -> Tensor:
    """Columns of `values`, zeros where the group is -1, rows filled up to whole tiles."""
    taken = values[:, groups.clamp(min=0)]
    taken[:, groups < 0] = 0
    return _pad_rows(taken) if pad else taken


def _pad_rows(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 0) * (values.ndim - 1) + (0, -len(values) % ROWS))


def decode(weight: DeviceTwoLevel, index: Tensor | None = None) -> tuple[TwoLevelParts, SparseParts | None]:
    """The inverse of `encode`; `index` as it was given, None for consecutive groups. Entries come row by row."""
    chunked, bits = weight.chunked, weight.bits
    tiles = chunked.chunks.shape[0]
    inputs, rows = chunked.inputs, chunked.rows
    index = torch.arange(inputs, device=chunked.chunks.device) // GROUP if index is None else index
    gather, groups = group_order(index, inputs)
    there = gather >= 0
    codes = torch.empty(rows, inputs, dtype=torch.uint8, device=gather.device)
    codes[:, gather[there]] = _read_codes(chunked.chunks[..., : 512 * bits], bits)[:rows, there]
    pieces = torch.zeros(int(index.max()) + 1, dtype=torch.int64, device=gather.device)
    pieces[groups[groups >= 0]] = (groups >= 0).nonzero()[:, 0]
    scales, zeros = (each[:rows, pieces] for each in _read_second(chunked.chunks[..., 512 * bits + 128 :], weight.second_bits))
    constants = chunked.chunks[..., 512 * bits : 512 * bits + 128].contiguous().view(torch.float16)
    constants = constants.view(tiles, -1, 4, 4, 4).transpose(2, 3).reshape(tiles, -1, 4).float()
    constants[..., 0] *= chunked.factor * 2.0 ** (PLACES[bits][0] - 24)
    constants[..., 1::2] *= -1
    grids = constants[:, pieces].repeat_interleave(ROWS, 0)[:rows]
    parts = TwoLevelParts(codes, scales, zeros, grids[..., :2], grids[..., 2:], index)
    return parts, None if chunked.records is None else decode_list(chunked, gather)


def _read_codes(blob: Tensor, bits: int) -> Tensor:
    """The inverse of `_code_bytes`."""
    tiles, chunks, _ = blob.shape
    loads = blob.contiguous().view(torch.int32).view(tiles, chunks, bits, 32, 4)
    words = loads.permute(0, 1, 3, 2, 4).reshape(tiles, chunks, 32, 4, bits).transpose(2, 3)
    split = torch.zeros(tiles, chunks, 4, 32, 16, 2, dtype=torch.uint8, device=blob.device)
    for pair, pieces in enumerate(code_places(bits)):
        for first, count, word, place in pieces:
            for odd in range(2):
                split[..., pair, odd] |= ((words[..., word] >> (place + 16 * odd) & 2**count - 1) << first).to(torch.uint8)
    # tile, chunk, group, row, lane, half, step, odd → tile, half, row, chunk, group, lane, step, odd
    parts = split.view(tiles, chunks, 4, 8, 4, 2, 8, 2).permute(0, 5, 3, 1, 2, 4, 6, 7)
    return parts.reshape(tiles * ROWS, chunks * CHUNK)


def _read_second(blob: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The inverse of `_second_bytes`."""
    tiles, chunks, _ = blob.shape
    group = torch.arange(4, device=blob.device, dtype=torch.int32)
    first = blob[..., :128].contiguous().view(torch.int32)
    halves = torch.stack([first & 0xFFFF, first >> 16 & 0xFFFF], -1)[..., None]
    if bits == 4:
        last = blob[..., 128:].contiguous().view(torch.int32)
        scales = halves >> 4 * group & 15
        zeros = torch.stack([last & 0xFFFF, last >> 16 & 0xFFFF], -1)[..., None] >> 4 * group & 15
    else:
        byte = blob[..., 128:].view(tiles, chunks, 32, 2).to(torch.int32)
        halves = halves[..., 0]
        scales = halves[..., None] >> 3 * group & 7
        zeros = torch.stack([halves >> 12 & 7, byte & 7, byte >> 3 & 7, byte >> 6 | (halves >> 15) << 2], -1)

    def ordered(lanes: Tensor) -> Tensor:
        split = lanes.view(tiles, chunks, 8, 4, 2, 4).permute(0, 4, 2, 1, 5, 3)
        return split.reshape(tiles * ROWS, chunks * 16).to(torch.uint8)

    return ordered(scales), ordered(zeros)


def second_bits(description: Mapping[str, Any]) -> int:
    """Bits that codes of scales and zeros take in a chunk: 3, or 4 where one has more."""
    bits = description["bits"]
    zero = bits if description["round_zero"] or description["symmetric"] else description["zero_bits"]
    return 3 if max(description["scale_bits"], zero) <= 3 else 4


def reason_against(description: Mapping[str, Any]) -> str:
    """Why the kernel does not read a weight so described; "" if it does."""
    dense, others = description, 0
    if description["kind"] == "sum":
        dense, others = description["terms_0"], sum(name.startswith("terms_") for name in description) - 1
    if dense["kind"] != "two_level" or others > 1 or (others == 1 and description["terms_1"]["kind"] != "sparse_rows"):
        return "for a two-level weight, alone or with one sparse term"
    if dense["bits"] not in PLACES:
        return f"for codes of 2, 3 or 4 bits, not {dense['bits']}"
    if dense["scale_bits"] is None or (dense["zero_bits"] is None and not (dense["symmetric"] or dense["round_zero"])):
        return "for scales and zeros that are codes themselves"
    if second_bits(dense) == 4 and max(dense["scale_bits"], dense["zero_bits"] or 0) > 4:
        return "for scales and zeros of at most 4 bits"
    if dense["second_group_size"] % ROWS and dense["second_group_size"] < dense["shape"][0]:
        return f"for second groups in whole {ROWS} outputs, not {dense['second_group_size']}"
    if dense["group_size"] % GROUP and dense["group_size"] < dense["shape"][1]:
        return f"for groups of whole {GROUP} inputs, not {dense['group_size']}"
    if others and dense["shape"][1] > MOST_PLACES:
        return f"for at most {MOST_PLACES} inputs beside a sparse term, not {dense['shape'][1]}"
    return ""
