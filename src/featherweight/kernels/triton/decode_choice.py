"""The next token from a step's logits, without the host: the largest, or a draw, and everything moved on by one."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.decoding import Chosen
from featherweight.kernels.triton.decode_cut import BINS, find_cut, next_digit, ordered
from featherweight.kernels.triton.dependent import launch_options, wait_for_inputs

#: Logits of one program, and its warps.
BLOCK, WARPS = 1024, 4


@triton.jit
def _choose(
    logits, temperature, seed, position, token, history, best, where, ticket, vocabulary, length, batch: tl.constexpr,
    parts: tl.constexpr, block: tl.constexpr, padded: tl.constexpr, dependent: tl.constexpr, has_cut: tl.constexpr = False,
    sums=None, prefixes=None, left=None, aim=None, last=0, digit: tl.constexpr = 0, sums_of: tl.constexpr = 0,
):  # fmt: skip
    """A program finds the largest of its part of one row; the last of all finds the largest of the parts, and moves on."""
    wait_for_inputs(dependent)
    row, part = tl.program_id(0), tl.program_id(1)
    lane = part * block + tl.arange(0, block)
    raw = tl.load(logits + row.to(tl.int64) * vocabulary + lane, mask=lane < vocabulary, other=float("-inf"))
    value = raw.to(tl.float32)
    broken = (lane < vocabulary) & ((value != value) | (tl.abs(value) == float("inf")))
    heat, here = tl.load(temperature), tl.load(position)
    if heat > 0:
        uniform = tl.rand(tl.load(seed), ((here + 1) * batch + row) * vocabulary + lane)
        value = value / heat - tl.log(-tl.log(tl.maximum(uniform, 1e-30)))
    value = tl.where(lane < vocabulary, value, float("-inf"))
    if has_cut:
        smallest, _ = next_digit(sums, prefixes, left, aim, last, row, digit, sums_of)
        if part == 0:  # for the next token
            tl.store(sums + row * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int64))
        value = tl.where(ordered(raw) >= smallest, value, float("-inf"))
    value = tl.where(broken, float("inf"), value)
    most, index = tl.max(value, axis=0, return_indices=True)
    tl.store(best + row * parts + part, most)
    tl.store(where + row * parts + part, part * block + index)
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem="acq_rel") != batch * parts - 1:
        return
    tl.store(ticket, 0)
    slot = tl.arange(0, padded)
    for each in range(batch):
        found = tl.load(best + each * parts + slot, mask=slot < parts, other=float("-inf"), cache_modifier=".cg")
        most, index = tl.max(found, axis=0, return_indices=True)
        chosen = tl.load(where + each * parts + index, cache_modifier=".cg")
        tl.store(token + each, chosen.to(tl.int64))
        tl.store(history + each * length + here + 1, tl.where(most == float("inf"), -1, chosen))
    tl.store(position, here + 1)


def choose_token(logits: Tensor, chosen: Chosen, by: tuple[bool, bool] = (False, False)) -> None:
    """As `featherweight.kernels.reference.decode_choice.choose_token`; a draw is by noise of its own (Gumbel), seeded alike."""
    batch, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, BLOCK)
    cut = {"has_cut": True, **find_cut(logits, chosen, by)} if any(by) else {}
    _choose[(batch, parts)](
        logits, chosen.temperature, chosen.seed, chosen.position, chosen.token, chosen.history, chosen.best, chosen.where,
        chosen.ticket, vocabulary, chosen.history.shape[1], batch, parts, BLOCK, triton.next_power_of_2(parts),
        num_warps=WARPS, **cut, **launch_options(logits.device),
    )  # fmt: skip
