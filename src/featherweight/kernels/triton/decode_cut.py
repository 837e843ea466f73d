"""The smallest logit that top-k and top-p leave, found without the host: eleven bits of it in every launch, by counts or by masses.

A logit is kept if fewer than k are larger, and if those larger than it have less than p of the mass of all that top-k keeps.
Most are smaller than k others of their own part, and are not even counted. Masses are added up as integers, so that their order
does not matter and a replay finds what the first run found.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.decoding import CUT_BLOCK, CUT_LAUNCHES, DIGITS, Chosen
from featherweight.kernels.triton.dependent import launch_options, wait_for_inputs

BINS: Any = tl.constexpr(DIGITS)
BITS: Any = tl.constexpr(DIGITS.bit_length() - 1)
LAUNCHES: Any = tl.constexpr(CUT_LAUNCHES)

#: The mass of the largest logit; 2²³ logits fit into a sum.
UNIT: Any = tl.constexpr(2.0**40)

#: What a launch adds up of the logits that have a digit: nothing (it finds the largest logit only), how many they are, their mass.
NOTHING, COUNTS, MASSES = 0, 1, 2

WARPS = 4


@triton.jit
def ordered(value):
    """Numbers as integers of the same order: of 22 bits for types of 16, of 33 for float32."""
    if value.dtype == tl.float32:
        bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000) << 1
    else:
        bits = value.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF
        return tl.where(bits >= 0x8000, 0xFFFF - bits, bits + 0x8000) << 6


@triton.jit
def next_digit(sums, prefixes, left, aim, slot, row, digit, sums_of: tl.constexpr):
    """The digits known with the one that launch `slot` added up last, and how much is still looked for below that."""
    bin = tl.arange(0, BINS)
    each = tl.load(sums + (slot + row).to(tl.int64) * BINS + bin, cache_modifier=".cg")
    total = tl.sum(each, 0)
    wanted = tl.load(aim).to(tl.int64)
    if sums_of == 2:
        wanted = tl.ceil(tl.load(aim).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    wanted = tl.where(digit == 0, wanted, tl.load(left + slot + row))
    known = tl.where(digit == 0, 0, tl.load(prefixes + slot + row))
    reached = total - tl.cumsum(each, 0) + each  # of this digit and all larger ones
    found = tl.max(tl.where((reached >= wanted) & (each > 0), bin, -1), 0)
    lowest = tl.min(tl.where(each > 0, bin, BINS - 1), 0)  # a k beyond the vocabulary: all that there are
    found = tl.where(found < 0, lowest, found)
    above = tl.sum(tl.where(bin > found, each, 0), 0)
    return known * BINS + found, wanted - above


@triton.jit
def smallest_wanted(value, count, block: tl.constexpr):
    """No larger than the `count`-th largest of a part: of every eight the largest, of these the `count`-th; −∞ where they are fewer."""
    tops = tl.max(tl.reshape(value, [block // 8, 8]), 1)
    larger = tl.sum((tops[None, :] > tops[:, None]).to(tl.float32), 1)
    bound = tl.min(tl.where(larger < count, tops, float("inf")), 0)
    return tl.where(count > block // 8, float("-inf"), bound)


@triton.jit(do_not_specialize=["launch", "digit", "digit_before"])
def _add_up(
    logits, temperature, aim_before, sums, maxima, prefixes, left, floors, vocabulary, batch, parts, launch, digit, digit_before,
    digits: tl.constexpr, sums_of: tl.constexpr, sums_before: tl.constexpr, block: tl.constexpr, padded: tl.constexpr,
    dependent: tl.constexpr,
):  # fmt: skip
    """Add up, by their next digit, a part's logits whose digits before are known; the first launch clears the sums of the others."""
    wait_for_inputs(dependent)
    row, part = tl.program_id(0), tl.program_id(1)
    here, before = launch * batch, (launch - 1) * batch
    lane = part * block + tl.arange(0, block)
    raw = tl.load(logits + row.to(tl.int64) * vocabulary + lane, mask=lane < vocabulary, other=0.0)
    known, wanted, floor = tl.zeros([], tl.int64), tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    if sums_before:
        known, wanted = next_digit(sums, prefixes, left, aim_before, before, row, digit_before, sums_before)
        floor = tl.where(digit == 0, known, tl.load(floors + before + row))
        known = tl.where(digit == 0, 0, known)  # a search begins
    if part == 0:
        tl.store(prefixes + here + row, known)
        tl.store(left + here + row, wanted)
        tl.store(floors + here + row, floor)
    if launch == 0:
        for other in range(1 + part, LAUNCHES, parts):
            place = (other * batch + row).to(tl.int64) * BINS + tl.arange(0, BINS)
            tl.store(sums + place, tl.zeros([BINS], tl.int64))
    value, key = raw.to(tl.float32), ordered(raw)
    if launch == 0:
        tl.store(maxima + row * parts + part, tl.max(tl.where(lane < vocabulary, value, float("-inf")), 0))
    inside = (lane < vocabulary) & (key >= floor) & ((key >> (BITS * (digits - digit))) == known)
    own = ((key >> (BITS * (digits - 1 - digit))) & (BINS - 1)).to(tl.int32)
    place = sums + (here + row).to(tl.int64) * BINS
    if sums_of == 1:
        inside &= value >= smallest_wanted(tl.where(lane < vocabulary, value, float("-inf")), tl.load(aim_before), block)
        tl.atomic_add(place + own, tl.full([block], 1, tl.int64), mask=inside, sem="relaxed")
    if sums_of == 2:
        slot = tl.arange(0, padded)
        most = tl.max(tl.load(maxima + row * parts + slot, mask=slot < parts, other=float("-inf"), cache_modifier=".cg"), 0)
        mass = (tl.exp((value - most) / tl.load(temperature)) * UNIT).to(tl.int64)
        tl.atomic_add(place + own, mass, mask=inside, sem="relaxed")


def find_cut(logits: Tensor, chosen: Chosen, by: tuple[bool, bool]) -> dict[str, Any]:
    """Look for the smallest logit kept, by top-k, top-p or both (`by`); what is left to `next_digit` for `choose_token`."""
    batch, vocabulary = logits.shape
    parts, digits, cut = triton.cdiv(vocabulary, CUT_BLOCK), 3 if logits.dtype == torch.float32 else 2, chosen.cut
    counted = [(chosen.top_k, COUNTS, digit) for digit in range(digits)] if by[0] else [(chosen.top_k, NOTHING, 0)]
    launches = [*counted, *((chosen.top_p, MASSES, digit) for digit in range(digits) if by[1])]
    for launch, (_, sums_of, digit) in enumerate(launches):
        aim_before, sums_before, digit_before = launches[launch - 1] if launch else (chosen.top_k, NOTHING, 0)
        _add_up[(batch, parts)](
            logits, chosen.temperature, aim_before, cut.sums, cut.maxima, cut.prefixes, cut.left, cut.floors, vocabulary, batch,
            parts, launch, digit, digit_before, digits, sums_of, sums_before, CUT_BLOCK, triton.next_power_of_2(parts),
            num_warps=WARPS, **launch_options(logits.device),
        )  # fmt: skip
    aim, sums_of, digit = launches[-1]
    return {
        "sums": cut.sums, "prefixes": cut.prefixes, "left": cut.left, "aim": aim, "last": (len(launches) - 1) * batch,
        "digit": digit, "sums_of": sums_of,
    }  # fmt: skip
