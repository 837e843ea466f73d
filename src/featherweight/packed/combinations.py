"""Two ways to say which N of every M inputs are kept: the place of each, or the number of their combination."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, packed_width, unpack

#: Largest M of the places, and of the combinations; most combinations that a code tells apart.
LARGEST_INDEXED, LARGEST_COMBINED, MOST_COMBINATIONS = 256, 16, 256


def forms_of(keep: int, of: int) -> list[str]:
    """The forms that N:M masks can take: "index" stores `⌈log2 M⌉` bits per kept value, "combination" `⌈log2 (M over N)⌉` per M."""
    combined = of <= LARGEST_COMBINED and 1 < comb(of, keep) <= MOST_COMBINATIONS
    return ["index"] * (of <= LARGEST_INDEXED) + ["combination"] * combined


def mask_width(form: str, keep: int, of: int, inputs: int) -> int:
    """Bytes that the mask of one output takes."""
    codes, bits = _codes(form, keep, of, inputs)
    return packed_width(codes, bits)


def write_mask(form: str, mask: Tensor, keep: int, of: int) -> Tensor:
    """`mask [out, in]`, N of every M consecutive inputs True, to `[out, mask_width]` uint8."""
    rows, inputs = mask.shape
    codes, bits = _codes(form, keep, of, inputs)
    parts = mask.view(rows, inputs // of, of)
    if form == "index":
        return pack(parts.nonzero()[:, 2].to(torch.uint8).view(rows, codes), bits)
    return pack(_numbers(keep, of).to(mask.device)[_as_number(parts)], bits)


def read_mask(form: str, stored: Tensor, keep: int, of: int, inputs: int) -> Tensor:
    """The inverse of `write_mask`, `[out, inputs]` bool."""
    codes, bits = _codes(form, keep, of, inputs)
    numbers, rows = unpack(stored, bits, codes).long(), stored.shape[0]
    if form == "combination":
        return _table(keep, of, stored.device)[numbers].view(rows, inputs)
    mask = torch.zeros(rows, inputs // of, of, dtype=torch.bool, device=stored.device)
    return mask.scatter_(2, numbers.view(rows, inputs // of, keep), True).view(rows, inputs)


def _codes(form: str, keep: int, of: int, inputs: int) -> tuple[int, int]:
    """Codes of one output, and bits of each."""
    if form == "index":
        return inputs // of * keep, max(1, (of - 1).bit_length())
    return inputs // of, (comb(of, keep) - 1).bit_length()


@cache
def _table(keep: int, of: int, device: torch.device) -> Tensor:
    """Every combination in lexicographic order, `[(M over N), M]` bool; copied to a device once."""
    chosen = list(combinations(range(of), keep))
    table = torch.zeros(len(chosen), of, dtype=torch.bool)
    return (table.scatter_(1, torch.tensor(chosen), True) if keep else table).to(device)


@cache
def _numbers(keep: int, of: int) -> Tensor:
    """Place in `_table` of the combination whose bits are those of the index, `[2^M]` uint8."""
    numbers = torch.zeros(2**of, dtype=torch.uint8)
    table = _table(keep, of, numbers.device)
    numbers[_as_number(table)] = torch.arange(len(table), dtype=torch.uint8)
    return numbers


def _as_number(mask: Tensor) -> Tensor:
    """`[..., M]` bool read as binary, first input lowest, `[...]` int64."""
    return (mask.long() << torch.arange(mask.shape[-1], device=mask.device)).sum(-1)
