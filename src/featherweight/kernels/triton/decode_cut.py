"""The smallest logit that top-k and top-p leave, found without the host: six bits of it in every launch, by counts or by masses.

A logit is kept if fewer than k are larger, and if those larger than it have less than p of the mass of all that top-k keeps.
Partial sums are added up in one order, so that a replay finds what the first run found.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.decoding import CUT_BLOCK, DIGITS, Chosen
from featherweight.kernels.triton.dependent import launch_options, wait_for_inputs

BINS: Any = tl.constexpr(DIGITS)
BITS: Any = tl.constexpr(DIGITS.bit_length() - 1)

WARPS = 8


@triton.jit
def ordered(value):
    """Numbers as integers of the same order: of 18 bits for types of 16, of 36 for float32."""
    if value.dtype == tl.float32:
        bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000) << 4
    else:
        bits = value.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF
        return tl.where(bits >= 0x8000, 0xFFFF - bits, bits + 0x8000) << 2


@triton.jit
def next_digit(
    partial, maxima, prefixes, left, peaks, aim, heat, row, parts, digit, by_mass: tl.constexpr, padded: tl.constexpr
):
    """The digits known with the one that was counted last, how much is still looked for below that, and the largest logit."""
    part, bin = tl.arange(0, padded), tl.arange(0, BINS)
    inside = part < parts
    place = (row * parts + part).to(tl.int64)
    tile = tl.load(partial + place[:, None] * BINS + bin[None, :], mask=inside[:, None], other=0.0, cache_modifier=".cg")
    peak = tl.zeros([], dtype=tl.float32)
    if by_mass:
        most = tl.load(maxima + place, mask=inside, other=float("-inf"), cache_modifier=".cg")
        peak = tl.where(digit == 0, tl.max(most, 0), tl.load(peaks + row))
        tile *= tl.exp((most - peak) / heat)[:, None]
    each = tl.sum(tile, 0)
    total = tl.sum(each, 0)
    share = tl.load(aim) * total if by_mass else tl.load(aim)
    wanted = tl.where(digit == 0, share, tl.load(left + row))
    known = tl.where(digit == 0, 0, tl.load(prefixes + row))
    reached = total - tl.cumsum(each, 0) + each  # of this digit and all larger ones
    found = tl.max(tl.where((reached >= wanted) & (each > 0), bin, -1), 0)
    lowest = tl.min(tl.where(each > 0, bin, BINS - 1), 0)  # rounding, or a k beyond the vocabulary: all that there are
    found = tl.where(found < 0, lowest, found)
    above = tl.sum(tl.where(bin > found, each, 0.0), 0)
    return known * BINS + found, wanted - above, peak


@triton.jit(do_not_specialize=["launch", "digit"])
def _count(
    logits, temperature, aim, aim_before, partial, partial_before, maxima, maxima_before, prefixes, left, peaks, floors,
    vocabulary, batch, parts, launch, digit, digits: tl.constexpr, by_mass: tl.constexpr, was_by_mass: tl.constexpr,
    block: tl.constexpr, padded: tl.constexpr, dependent: tl.constexpr,
):  # fmt: skip
    """Count, or weigh, each next digit of a part's logits among those whose digits before are known."""
    wait_for_inputs(dependent)
    row, part = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature)
    slot = tl.maximum(launch - 1, 0) * batch
    known, wanted, peak = next_digit(
        partial_before, maxima_before, prefixes + slot, left + slot, peaks + slot, aim_before, heat, row, parts,
        tl.where(digit == 0, digits, digit) - 1, was_by_mass, padded,
    )  # fmt: skip
    floor = tl.where(launch == 0, 0, tl.where(digit == 0, known, tl.load(floors + slot + row)))
    known = tl.where(digit == 0, 0, known)  # a search begins
    if part == 0:
        tl.store(prefixes + launch * batch + row, known)
        tl.store(left + launch * batch + row, wanted)
        tl.store(peaks + launch * batch + row, peak)
        tl.store(floors + launch * batch + row, floor)
    lane = part * block + tl.arange(0, block)
    raw = tl.load(logits + row.to(tl.int64) * vocabulary + lane, mask=lane < vocabulary, other=0.0)
    value, key = raw.to(tl.float32), ordered(raw)
    inside = (lane < vocabulary) & (key >= floor)
    inside &= (key >> (BITS * (digits - digit))) == known
    weight = inside.to(tl.float32)
    if by_mass:
        most = tl.max(tl.where(inside, value, float("-inf")), 0)
        weight = tl.where(inside, tl.exp((value - tl.where(most > float("-inf"), most, 0.0)) / heat), 0.0)
        tl.store(maxima + row * parts + part, most)
    own = ((key >> (BITS * (digits - 1 - digit))) & (BINS - 1)).to(tl.int32)
    bin = tl.arange(0, BINS)
    sums = tl.sum(tl.where(own[:, None] == bin[None, :], weight[:, None], 0.0), 0)
    tl.store(partial + (row * parts + part).to(tl.int64) * BINS + bin, sums)


def count_digits(logits: Tensor, chosen: Chosen, by: tuple[bool, bool]) -> dict[str, Any]:
    """Look for the smallest logit kept, by top-k, top-p or both (`by`); what is left to `next_digit` for `choose_token`."""
    batch, vocabulary = logits.shape
    parts, digits, cut = triton.cdiv(vocabulary, CUT_BLOCK), 6 if logits.dtype == torch.float32 else 3, chosen.cut
    aims = [(aim, mass) for aim, mass, wanted in ((chosen.top_k, False, by[0]), (chosen.top_p, True, by[1])) if wanted]
    launches = [(aim, mass, digit) for aim, mass in aims for digit in range(digits)]
    for launch, (aim, mass, digit) in enumerate(launches):
        before = launches[max(0, launch - 1)]
        turn, other = launch % 2, (launch + 1) % 2
        _count[(batch, parts)](
            logits, chosen.temperature, aim, before[0], cut.partial[turn], cut.partial[other],
            cut.maxima[turn], cut.maxima[other], cut.prefixes, cut.left, cut.peaks, cut.floors, vocabulary, batch, parts,
            launch, digit, digits, mass, before[1], CUT_BLOCK, triton.next_power_of_2(parts), num_warps=WARPS,
            **launch_options(logits.device),
        )  # fmt: skip
    last, slot = launches[-1], len(launches) - 1
    return {
        "partial": cut.partial[slot % 2], "maxima": cut.maxima[slot % 2], "prefixes": cut.prefixes[slot], "left": cut.left[slot],
        "peaks": cut.peaks[slot], "aim": last[0], "by_mass": last[1], "digit": last[2], "cut_parts": parts,
        "cut_padded": triton.next_power_of_2(parts),
    }  # fmt: skip
