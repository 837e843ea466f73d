"""How the CUDA kernels want lattice codes, low-rank factors and Hadamard matrices: permutations of what is stored, and back.

A warp multiplies 16 outputs by slices of 256 inputs, each lane 16 bytes at a time. Lane `l` holds outputs `l / 4` and
`l / 4 + 8` and, of every 64 inputs, the two vectors of eight from `16 (l % 4)` on. `kernels/cuda/source/lattice.cu` and
`hadamard.cu` read what is written here.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Outputs of a tile, inputs of a slice, values of a vector.
ROWS, SLICE, VECTOR = 16, 256, 8

#: Bits of a word of nibbles at which the eight coordinates of a codeword lie: pairs in the same place of either half.
PAIRS = (0, 16, 4, 20, 8, 24, 12, 28)

#: Of an `R`'s nibbles: the first four in the lower halves of the bytes, the others in the upper.
HALVES = (0, 8, 16, 24, 4, 12, 20, 28)


def tables(codebook: Tensor, small: Tensor | None = None) -> Tensor:
    """Words of nibbles `q`, `[2 or 3, 256]` int32: a codeword of code `c` is `T[c >> 8] ^ S[c & 255]`, `v = (q − 7.5) / 2`.

    Args:
        codebook: `[65536, 8]`, of codes of 16 bits.
        small: `[256, 8]`, the third table, `v = (q − 8) / 2`.
    """
    whole = _words(codebook[::256] * 2 + 7.5, PAIRS)
    rows = [whole, _words(codebook[:256] * 2 + 7.5, PAIRS) ^ whole[0]]
    return torch.stack(rows if small is None else [*rows, _words(small * 2 + 8, PAIRS)])


def _words(nibbles: Tensor, places: tuple[int, ...]) -> Tensor:
    shifts = torch.tensor(places, device=nibbles.device)
    return _wrapped((nibbles.to(torch.int64) << shifts).sum(-1))


def _wrapped(words: Tensor) -> Tensor:
    """Unsigned 32-bit numbers in int64 as int32."""
    return ((words + 2**31) % 2**32 - 2**31).to(torch.int32)


def encode_codes(codes: Tensor, residual: Tensor | None = None) -> Tensor:
    """Codes `[out, vectors]` int16, second ones int16 or uint8, to `[tiles, slices, bits, 32, 4]` int32; filled up with zeros."""
    parts = [_encode_wide(codes)]
    if residual is not None:
        parts.append(_encode_wide(residual) if residual.dtype == torch.int16 else _encode_narrow(residual))
    return torch.cat(parts, 2).contiguous()


def decode_codes(words: Tensor, rows: int, vectors: int) -> tuple[Tensor, Tensor | None]:
    """The inverse of `encode_codes`: codes `[rows, vectors]` and second ones."""
    tiles, slices, bits = words.shape[:3]

    def wide(part: Tensor) -> Tensor:
        split = part.contiguous().view(torch.int16).view(tiles, slices, 2, 8, 4, 2, 2, 2)
        return split.permute(0, 6, 3, 1, 2, 5, 4, 7).reshape(tiles * ROWS, -1)[:rows, :vectors].contiguous()

    if bits == 2:
        return wide(words), None
    if bits == 4:
        return wide(words[:, :, :2]), wide(words[:, :, 2:])
    split = words[:, :, 2:].contiguous().view(torch.uint8).view(tiles, slices, 8, 4, 4, 2, 2)
    narrow = split.permute(0, 5, 2, 1, 4, 3, 6).reshape(tiles * ROWS, -1)[:rows, :vectors].contiguous()
    return wide(words[:, :, :2]), narrow


def _filled(codes: Tensor) -> Tensor:
    rows, vectors = codes.shape
    return torch.nn.functional.pad(codes, (0, -vectors % (SLICE // VECTOR), 0, -rows % ROWS))


def _encode_wide(codes: Tensor) -> Tensor:
    codes = _filled(codes)
    tiles, slices = codes.shape[0] // ROWS, codes.shape[1] * VECTOR // SLICE
    # tile, half, row, slice, part, block of 64 inputs, lane of a row, vector → tile, slice, part, lane, block, half, vector
    split = codes.view(tiles, 2, 8, slices, 2, 2, 4, 2).permute(0, 3, 4, 2, 6, 5, 1, 7).contiguous()
    return split.view(torch.int32).view(tiles, slices, 2, 32, 4)


def _encode_narrow(codes: Tensor) -> Tensor:
    codes = _filled(codes)
    tiles, slices = codes.shape[0] // ROWS, codes.shape[1] * VECTOR // SLICE
    split = codes.view(tiles, 2, 8, slices, 4, 4, 2).permute(0, 3, 2, 5, 4, 1, 6).flatten(-2).contiguous()
    return split.view(torch.int32).view(tiles, slices, 1, 32, 4)


def encode_left(codes: Tensor) -> Tensor:
    """4-bit codes of `Lᵀ [rank, out]` uint8 to `[tiles, rank / 16, 32]` int32; filled up with the code 8 of 0."""
    rank, rows = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -rows % ROWS, 0, -rank % ROWS), value=8).T
    # tile, half, row, step, far, lane of a row, second → tile, step, lane, second, far, half
    split = codes.reshape(codes.shape[0] // ROWS, 2, 8, codes.shape[1] // ROWS, 2, 4, 2).permute(0, 3, 2, 5, 6, 4, 1)
    shifts = 4 * torch.arange(8, device=codes.device)
    return _wrapped((split.flatten(4).to(torch.int64) << shifts).sum(-1)).flatten(2, 3).contiguous()


def decode_left(words: Tensor, rank: int, rows: int) -> Tensor:
    """The inverse of `encode_left`: codes `[rank, rows]` uint8."""
    nibbles = (words[..., None] >> 4 * torch.arange(8, device=words.device) & 15).to(torch.uint8)
    split = nibbles.view(*words.shape[:2], 8, 4, 2, 2, 2).permute(0, 6, 2, 1, 5, 3, 4)
    return split.reshape(len(words) * ROWS, -1).T[:rank, :rows].contiguous()


def encode_left_scales(scales: Tensor) -> Tensor:
    """Scales of `Lᵀ [rank, groups]` to `[groups, rank]`, filled up with zeros."""
    return torch.nn.functional.pad(scales, (0, 0, 0, -scales.shape[0] % ROWS)).T.contiguous()


def encode_right(codes: Tensor) -> Tensor:
    """4-bit codes of `R [rank, in]` uint8 to `[rank, words]` int32, eight inputs each as nibbles with a sign; filled up with 0."""
    rank, inputs = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -inputs % SLICE), value=8) ^ 8
    return _words(codes.view(rank, -1, VECTOR), HALVES)


def decode_right(words: Tensor, inputs: int) -> Tensor:
    """The inverse of `encode_right`: codes `[rank, inputs]` uint8."""
    nibbles = words[..., None] >> torch.tensor(HALVES, device=words.device) & 15
    return (nibbles.flatten(1)[:, :inputs] ^ 8).to(torch.uint8)


def encode_factor(matrix: Tensor) -> Tensor:
    """Signs of a square matrix of ±1 as the matrix unit's operands, `[tiles, words, 32]` int32, four operands to a word."""
    size = len(matrix)
    tiles = -(-size // ROWS)
    words = -(-tiles // 4)
    negative = torch.zeros(tiles * ROWS, words * 4 * ROWS, dtype=torch.int64)
    negative[:size, :size] = (matrix < 0).to(torch.int64)
    # tile, half, row, word, operand, far, lane of a row, second → tile, word, row, lane of a row, second, operand, far, half
    split = negative.view(tiles, 2, 8, words, 4, 2, 4, 2).permute(0, 3, 2, 6, 7, 4, 5, 1)
    shifts = torch.arange(32).view(2, 4, 2, 2)
    return _wrapped((split << shifts).sum((-4, -3, -2, -1))).view(tiles, words, 32).contiguous()
