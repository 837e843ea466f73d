"""How the CUDA kernels want integer codes: a permutation of the stored bits, and back.

A warp reads a tile of 16 outputs, each lane 16 bytes at a time. Lane `l` holds outputs `l / 4` and `l / 4 + 8` and, of every
chunk of 32 inputs, the inputs `8 (l % 4)` to `8 (l % 4) + 7`; these are what the matrix unit expects of it, so that no shuffle is
needed. The codes of one output in a lane lie in cells of whole 32-bit words (`CELLS`), the cells of the two outputs in turn.
`kernels/cuda/source/integer.cuh` reads what is written here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Of the layout; a device copy of another version is thrown away and made again.
VERSION = 2

#: Outputs of a tile; inputs of a chunk, of a block (which a row of scales covers), and of a step (to which they are padded).
ROWS, CHUNK, BLOCK, STEP = 16, 32, 128, 256


@dataclass(frozen=True)
class Cell:
    """Where a lane's codes of one output lie in words.

    Attributes:
        bits: of a code.
        chunks: of 32 inputs that a cell covers; eight codes of each.
        words: 32-bit words of a cell.
    """

    bits: int
    chunks: int
    words: int

    def places(self, code: int) -> list[tuple[int, int, int, int]]:
        """`(first bit of the code, number of bits, word, bit in the word)` of every piece of code `code` of a cell."""
        pair, half = code // 2, 16 * (code % 2)
        if self.bits == 8:
            return [(0, 8, code // 4, pair % 2 * 8 + half)]
        if self.bits == 3 and pair == 15:
            return [(bit, 1, bit, 15 + half) for bit in range(3)]
        if self.bits == 3:
            return [(0, 3, pair // 5, pair % 5 * 3 + half)]
        return [(0, self.bits, 0, pair * self.bits + half)]


CELLS = {2: Cell(2, 2, 1), 3: Cell(3, 4, 3), 4: Cell(4, 1, 1), 8: Cell(8, 1, 2)}


def padded(rows: int, inputs: int) -> tuple[int, int]:
    """Outputs and inputs that the device codes cover: whole tiles, whole steps."""
    return -(-rows // ROWS) * ROWS, -(-inputs // STEP) * STEP


def encode_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes `[out, in]` uint8 to what the kernels read, `[tiles, words]` int32; padding is filled with zeros."""
    cell = CELLS[bits]
    rows, inputs = padded(*codes.shape)
    codes = torch.nn.functional.pad(codes, (0, inputs - codes.shape[1], 0, rows - codes.shape[0]))
    width = cell.chunks * CHUNK
    # tile, half, row, cell, chunk, part, code → tile, cell, row, part, half, chunk, code
    split = codes.view(rows // ROWS, 2, 8, inputs // width, cell.chunks, 4, 8).permute(0, 3, 2, 5, 1, 4, 6)
    split = split.reshape(rows // ROWS, inputs // width, 32, 2, cell.chunks * 8)
    words = torch.zeros(*split.shape[:-1], cell.words, dtype=torch.int32, device=codes.device)
    for code in range(cell.chunks * 8):
        value = split[..., code].to(torch.int32)
        for first, count, word, place in cell.places(code):
            words[..., word] |= (value >> first & 2**count - 1) << place
    # tile, cell, lane, word of the cell pair → tile, load, lane, word of the load
    lanes = words.flatten(3).transpose(1, 2).reshape(rows // ROWS, 32, -1, 4)
    return lanes.transpose(1, 2).reshape(rows // ROWS, -1).contiguous()


def decode_codes(words: Tensor, bits: int, rows: int, inputs: int) -> Tensor:
    """The inverse of `encode_codes`: `[out, in]` uint8 of `rows` outputs and `inputs` inputs."""
    cell = CELLS[bits]
    tiles = words.shape[0]
    lanes = words.view(tiles, -1, 32, 4).transpose(1, 2).reshape(tiles, 32, -1, 2, cell.words)
    codes = []
    for code in range(cell.chunks * 8):
        value = torch.zeros(lanes.shape[:-1], dtype=torch.int32, device=words.device)
        for first, count, word, place in cell.places(code):
            value |= (lanes[..., word] >> place & 2**count - 1) << first
        codes.append(value.to(torch.uint8))
    # tile, lane, cell, half, code → tile, half, row, cell, chunk, part, code
    split = torch.stack(codes, -1).view(tiles, 8, 4, -1, 2, cell.chunks, 8).permute(0, 4, 1, 3, 5, 2, 6)
    return split.reshape(tiles * ROWS, -1)[:rows, :inputs].contiguous()


def encode_groups(values: Tensor, group: int, inputs: int) -> Tensor:
    """Scales or zero points `[out, groups]`, a group each `group` of the inputs, to `[tiles, blocks, 8, groups of a block, 2]`.

    Rows that one lane needs, eight apart, lie side by side. Groups of more than a block are not repeated: a block is then a
    group. Padding is filled with zeros.
    """
    rows, groups = values.shape
    per_block = max(1, BLOCK // group)
    blocks = groups if group > BLOCK else -(-inputs // STEP) * STEP // BLOCK
    values = torch.nn.functional.pad(values, (0, blocks * per_block - groups, 0, -rows % ROWS))
    return values.view(-1, 2, 8, blocks, per_block).permute(0, 3, 2, 4, 1).contiguous()


def decode_groups(encoded: Tensor, rows: int, groups: int) -> Tensor:
    """The inverse of `encode_groups`: `[out, groups]`."""
    tiles, blocks, _, per_block, _ = encoded.shape
    return encoded.permute(0, 4, 2, 1, 3).reshape(tiles * ROWS, blocks * per_block)[:rows, :groups].contiguous()
