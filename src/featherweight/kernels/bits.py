"""Codes of 1 to 8 bits as one dense stream of bits, lowest bit first."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError


def packed_width(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take, `⌈count · bits / 8⌉`."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes `[..., n]` uint8, each below `2^bits`, to bytes `[..., ⌈n · bits / 8⌉]` uint8.

    Bit `k` of code `i` is bit `i · bits + k` of the stream; the last byte is filled with zeros.

    Raises:
        FeatherweightError: bits outside 1 to 8, or codes that are not uint8.
    """
    _check(codes, bits)
    count = codes.shape[-1]
    if bits == 8:
        return codes.contiguous()
    unit_codes, unit_bytes = _unit(bits)
    padded = torch.nn.functional.pad(codes, (0, -count % unit_codes)).unflatten(-1, (-1, unit_codes))
    columns = []
    for byte in range(unit_bytes):
        value = torch.zeros_like(padded[..., 0])
        for code in range(8 * byte // bits, min(unit_codes, (8 * byte + 7) // bits + 1)):
            shift = code * bits - 8 * byte
            value |= padded[..., code] << shift if shift >= 0 else padded[..., code] >> -shift
        columns.append(value)
    return torch.stack(columns, -1).flatten(-2)[..., : packed_width(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes `[..., count]` uint8 of bytes `[..., ⌈count · bits / 8⌉]`; the inverse of `pack`.

    Raises:
        FeatherweightError: bits outside 1 to 8, bytes that are not uint8, or a number of bytes that does not fit.
    """
    _check(packed, bits)
    if packed.shape[-1] != packed_width(count, bits):
        raise FeatherweightError(
            "packed bytes do not fit the number of codes",
            found=f"{packed.shape[-1]} bytes",
            expected=f"{packed_width(count, bits)} bytes for {count} codes of {bits} bits",
        )
    if bits == 8:
        return packed
    unit_codes, unit_bytes = _unit(bits)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % unit_bytes)).unflatten(-1, (-1, unit_bytes))
    columns = []
    for code in range(unit_codes):
        byte, shift = divmod(code * bits, 8)
        value = padded[..., byte] >> shift
        if shift + bits > 8:
            value |= padded[..., byte + 1] << (8 - shift)
        columns.append(value.bitwise_and_(2**bits - 1))
    return torch.stack(columns, -1).flatten(-2)[..., :count]


def pack_across(codes: Tensor, bits: int) -> Tensor:
    """As `pack`, but neighbouring codes in the same field of neighbouring 32-bit words: how a tile of a matrix unit wants them.

    2 and 4 bits, where a row fills `w` words, eights of them: code `i` is field `i // w` of word `i % w`. 3 bits, where there are
    whole 128 codes: their lower two bits so, then words of the highest one: of words `2 q` and `2 q + 1`, field `f` in word `q` at
    bit `8 (f // 4) + 4 (w % 2) + f % 4`. Others lie as `pack` has them.
    """
    words = _words(codes.shape[-1], bits)
    if bits == 3 and words:
        high = (codes >> 2).unflatten(-1, (4, 4, words // 2, 2)).permute(*range(codes.ndim - 1), -2, -4, -1, -3).flatten(-4)
        return torch.cat([pack(_across(codes & 3, words), 2), pack(high, 1)], -1)
    return pack(_across(codes, words) if words else codes, bits)


def unpack_across(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_across`, as `unpack`."""
    words = _words(count, bits)
    if bits == 3 and words:
        high = unpack(packed[..., 4 * words :], 1, count).unflatten(-1, (words // 2, 4, 2, 4))
        high = high.permute(*range(packed.ndim - 1), -3, -1, -4, -2).flatten(-4)
        return unpack_across(packed[..., : 4 * words], 2, count).add_(high << 2)
    codes = unpack(packed, bits, count)
    return codes.unflatten(-1, (words, -1)).transpose(-1, -2).flatten(-2) if words else codes


def _across(codes: Tensor, words: int) -> Tensor:
    return codes.unflatten(-1, (-1, words)).transpose(-1, -2).flatten(-2)


def _words(count: int, bits: int) -> int:
    """Words over which a row lies across (of 3 bits: the lower two), 0 where it lies as `pack` has it."""
    if bits == 3:
        return count // 16 if count % 128 == 0 else 0
    return count * bits // 32 if bits in (2, 4) and count * bits % 256 == 0 else 0


def _unit(bits: int) -> tuple[int, int]:
    """Smallest number of codes that fills whole bytes, and that number of bytes."""
    return 8 // gcd(8, bits), bits // gcd(8, bits)


def _check(tensor: Tensor, bits: int) -> None:
    if bits not in range(1, 9):
        raise FeatherweightError("codes of this width cannot be packed", found=f"{bits} bits", expected="1 to 8 bits")
    if tensor.dtype != torch.uint8:
        raise FeatherweightError("codes and bytes are uint8", found=tensor.dtype, expected=torch.uint8)
