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

#: Ranks of a factor `L` to a load.
RANKS = 64

#: Bits of a word of nibbles at which eight values lie: four in the lower halves of the bytes, four in the upper.
NIBBLES = (0, 8, 16, 24, 4, 12, 20, 28)


def tables(codebook: Tensor, small: Tensor | None = None) -> Tensor:
    """Words of nibbles `q`, `[2 or 3, 256]` int32: a codeword of code `c` is `T[c >> 8] ^ S[c & 255]`, `v = (q − 7.5) / 2`.

    Args:
        codebook: `[65536, 8]`, of codes of 16 bits.
        small: `[256, 8]`, the third table, `v = (q − 8) / 2`.
    """
    whole = _words(codebook[::256] * 2 + 7.5)
    rows = [whole, _words(codebook[:256] * 2 + 7.5) ^ whole[0]]
    return torch.stack(rows if small is None else [*rows, _words(small * 2 + 8)])


def _words(nibbles: Tensor) -> Tensor:
    shifts = torch.tensor(NIBBLES, device=nibbles.device)
    return _wrapped((nibbles.to(torch.int64) << shifts).sum(-1))


def _nibbles(words: Tensor) -> Tensor:
    return (words[..., None] >> torch.tensor(NIBBLES, device=words.device) & 15).to(torch.uint8)


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
    """4-bit codes of `Lᵀ [rank, out]` uint8 to `[tiles, rank / 64, 32, 4]` int32; filled up with the code 8 of 0."""
    rank, rows = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -rows % ROWS, 0, -rank % RANKS), value=8).T
    # tile, half, row, load, lane of a row, vector → tile, load, row, lane of a row, vector, half
    words = _words(codes.reshape(len(codes) // ROWS, 2, 8, -1, 4, 2, VECTOR)).permute(0, 3, 2, 4, 5, 1)
    return words.reshape(len(words), -1, 32, 4).contiguous()


def decode_left(words: Tensor, rank: int, rows: int) -> Tensor:
    """The inverse of `encode_left`: codes `[rank, rows]` uint8."""
    split = _nibbles(words.view(*words.shape[:2], 8, 4, 2, 2)).permute(0, 5, 2, 1, 3, 4, 6)
    return split.reshape(len(words) * ROWS, -1).T[:rank, :rows].contiguous()


def encode_left_scales(scales: Tensor) -> Tensor:
    """Scales of `Lᵀ [rank, groups]` to `[groups, rank]`, filled up with zeros."""
    return torch.nn.functional.pad(scales, (0, 0, 0, -scales.shape[0] % RANKS)).T.contiguous()


def encode_right(codes: Tensor) -> Tensor:
    """4-bit codes of `R [rank, in]` uint8 to `[rank, words]` int32, eight inputs each as nibbles with a sign; filled up with 0."""
    rank, inputs = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -inputs % SLICE), value=8) ^ 8
    return _words(codes.view(rank, -1, VECTOR))


def decode_right(words: Tensor, inputs: int) -> Tensor:
    """The inverse of `encode_right`: codes `[rank, inputs]` uint8."""
    return (_nibbles(words).flatten(1)[:, :inputs] ^ 8).contiguous()


def encode_ranks(codes: Tensor) -> Tensor:
    """4-bit codes of `R [rank, in]` uint8 to `[tiles of ranks, slices, 4, 32, 4]` int32, nibbles with a sign; filled up with 0."""
    rank, inputs = codes.shape
    filled = torch.nn.functional.pad(codes, (0, -inputs % SLICE, 0, -rank % RANKS), value=8)
    return encode_left((filled ^ 8).T).view(len(filled) // ROWS, -1, 4, 32, 4)


def decode_ranks(words: Tensor, rank: int, inputs: int) -> Tensor:
    """The inverse of `encode_ranks`: codes `[rank, inputs]` uint8."""
    return (decode_left(words.flatten(1, 2), inputs, rank).T ^ 8).contiguous()


def block_order(factor: int, twos: int, near: int) -> Tensor:
    """Rows of `A [factor] ⊗ Sylvester(2^twos)` by blocks: `f 2^twos + b 2^near + j` stands at `(b factor + f) 2^near + j`."""
    rows = torch.arange(factor << twos).view(factor, 1 << twos - near, 1 << near)
    return rows.transpose(0, 1).flatten()


def encode_signs(matrix: Tensor) -> Tensor:
    """Signs of a square matrix of ±1, `[size, words]` int32, a set bit for −1."""
    size = len(matrix)
    negative = torch.nn.functional.pad((matrix < 0).to(torch.int64), (0, -size % 32)).view(size, -1, 32)
    return _wrapped((negative << torch.arange(32)).sum(-1)).contiguous()


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
