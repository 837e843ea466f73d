"""Codes in 32-bit words, the lowest bits first, as GPTQ and compressed-tensors lay them out."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, unpack

#: Widths that fill a word.
WIDTHS = (2, 4, 8)


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes `[..., n]` uint8 as int32 words `[..., ⌈n · bits / 32⌉]`; the last word is filled with zeros."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (32 // bits)))
    return pack(padded, bits).view(torch.int32)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The codes `[..., 32 / bits · n]` uint8 of int32 words `[..., n]`; the inverse of `words`."""
    held = packed.contiguous().view(torch.uint8)
    return unpack(held, bits, held.shape[-1] * 8 // bits)
