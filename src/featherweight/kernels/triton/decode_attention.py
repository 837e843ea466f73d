"""One token's attention over a static cache, in one Triton launch: norms, rotation, append, split softmax and its sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.decoding import Heads
from featherweight.kernels.triton.dependent import launch_options, wait_for_inputs

#: Tokens that a program reads at once, and its warps; programs that share the tokens of one head, at most, and with which
#: query heads still have programs of their own.
CHUNK, WARPS, SPLITS, FEW = 64, 4, 64, 16

#: Splits that are added at once.
TOGETHER = 8


@triton.jit
def _rotated(first, second, gain, cosine, sine, half, eps, dim: tl.constexpr, normed: tl.constexpr):
    """Both halves of a head, normed and rotated, float32; `first`, `second` `[any, dim / 2]`."""
    if normed:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / dim + eps)[:, None]
        first *= scale * tl.load(gain + half)[None, :]
        second *= scale * tl.load(gain + dim // 2 + half)[None, :]
    c1, c2 = tl.load(cosine + half).to(tl.float32)[None, :], tl.load(cosine + dim // 2 + half).to(tl.float32)[None, :]
    s1, s2 = tl.load(sine + half).to(tl.float32)[None, :], tl.load(sine + dim // 2 + half).to(tl.float32)[None, :]
    return first * c1 - second * s1, second * c2 + first * s2


@triton.jit(do_not_specialize=["length", "splits"])
def _attend(
    qkv, cosine, sine, keys, values, position, query_gain, key_gain, out, sums, extremes, tickets, length, splits, scaling, eps,
    heads: tl.constexpr, group: tl.constexpr, padded: tl.constexpr, some: tl.constexpr, dim: tl.constexpr,
    chunk: tl.constexpr, chunks: tl.constexpr, together: tl.constexpr, normed: tl.constexpr, dependent: tl.constexpr,
):  # fmt: skip
    """A program takes `chunk · chunks` tokens of one key head, with all query heads that read it.

    The older keys and values are read before the wait: they are from earlier replays. The last program of a head to
    finish adds up the parts.
    """
    owner, split = tl.program_id(0), tl.program_id(1)
    here = tl.load(position)
    start = split * chunk * chunks
    if start > here:
        return
    lane, half, whole = tl.arange(0, chunk), tl.arange(0, dim // 2), tl.arange(0, dim)
    base = owner.to(tl.int64) * length * dim
    old = ((start + lane) < here)[:, None]
    at = base + (start + lane)[:, None] * dim
    k1 = tl.load(keys + at + half[None, :], mask=old, other=0.0)
    k2 = tl.load(keys + at + dim // 2 + half[None, :], mask=old, other=0.0)
    v = tl.load(values + at + whole[None, :], mask=old, other=0.0)
    wait_for_inputs(dependent)

    element = keys.dtype.element_ty
    row = qkv + (owner // heads) * (heads * (group + 2) * dim)
    head = owner % heads
    member = tl.arange(0, padded)
    inside = (member < group)[:, None]
    query_at = row + (head * group + member)[:, None] * dim + half[None, :]
    key_at = row + (heads * group + head) * dim + half[None, :]
    q1 = tl.load(query_at, mask=inside, other=0.0).to(tl.float32)
    q2 = tl.load(query_at + dim // 2, mask=inside, other=0.0).to(tl.float32)
    n1, n2 = tl.load(key_at).to(tl.float32), tl.load(key_at + dim // 2).to(tl.float32)
    new = tl.load(row + (heads * (group + 1) + head) * dim + whole[None, :])
    c, s = cosine + here * dim, sine + here * dim
    q1, q2 = _rotated(q1, q2, query_gain, c, s, half, eps, dim, normed)
    n1, n2 = _rotated(n1, n2, key_gain, c, s, half, eps, dim, normed)
    q1, q2, n1, n2 = q1.to(element), q2.to(element), n1.to(element), n2.to(element)
    if here < start + chunk * chunks:
        spot = base + here.to(tl.int64) * dim
        tl.store(keys + spot + half[None, :], n1)
        tl.store(keys + spot + dim // 2 + half[None, :], n2)
        tl.store(values + spot + whole[None, :], new)

    best = tl.full([padded], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([padded], dtype=tl.float32)
    total = tl.zeros([padded, dim], dtype=tl.float32)
    for number in range(chunks):
        token = start + number * chunk + lane
        if number > 0:
            old = (token < here)[:, None]
            at = base + token[:, None] * dim
            k1 = tl.load(keys + at + half[None, :], mask=old, other=0.0)
            k2 = tl.load(keys + at + dim // 2 + half[None, :], mask=old, other=0.0)
            v = tl.load(values + at + whole[None, :], mask=old, other=0.0)
        newest = (token == here)[:, None]
        k1, k2, v = tl.where(newest, n1, k1), tl.where(newest, n2, k2), tl.where(newest, new, v)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), acc=scores, input_precision="ieee") * scaling
        scores = tl.where((token <= here)[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        shrink = tl.exp(best - higher)
        parts = tl.exp(scores - higher[:, None])
        weight = weight * shrink + tl.sum(parts, axis=1)
        total = tl.dot(parts.to(element), v, acc=total * shrink[:, None], input_precision="ieee")
        best = higher

    part = owner * splits + split
    tl.store(sums + (part * some + member)[:, None] * dim + whole[None, :], total, mask=inside)
    tl.store(extremes + part * 2 * some + member, best, mask=member < group)
    tl.store(extremes + (part * 2 + 1) * some + member, weight, mask=member < group)
    tl.debug_barrier()  # every thread's part is stored before this program counts as finished
    active = here // (chunk * chunks) + 1
    if tl.atomic_add(tickets + owner, 1, sem="acq_rel") != active - 1:
        return
    tl.store(tickets + owner, 0)
    _combine(out, sums, extremes, owner, active, splits, group, some, dim, together)


@triton.jit(do_not_specialize=["length", "splits"])
def _attend_once(
    qkv, cosine, sine, keys, values, position, query_gain, key_gain, out, sums, extremes, tickets, length, splits, scaling, eps,
    heads: tl.constexpr, group: tl.constexpr, dim: tl.constexpr, chunk: tl.constexpr, together: tl.constexpr,
    normed: tl.constexpr, dependent: tl.constexpr,
):  # fmt: skip
    """As `_attend`, for short caches: a program takes one chunk for one query head, and holds it before the wait.

    No tensor cores: what counts is the way from the wait to the result.
    """
    owner, split = tl.program_id(0), tl.program_id(1)
    here = tl.load(position)
    start = split * chunk
    if start > here:
        return
    token, half, whole = start + tl.arange(0, chunk), tl.arange(0, dim // 2), tl.arange(0, dim)
    batch, head = owner // (heads * group), owner % (heads * group)
    key_head = head // group
    base = (batch * heads + key_head).to(tl.int64) * length * dim
    at = base + token[:, None] * dim
    old = (token < here)[:, None]
    k1 = tl.load(keys + at + half[None, :], mask=old, other=0.0)
    k2 = tl.load(keys + at + dim // 2 + half[None, :], mask=old, other=0.0)
    v = tl.load(values + at + whole[None, :], mask=old, other=0.0)
    wait_for_inputs(dependent)

    element = keys.dtype.element_ty
    row = qkv + batch * (heads * (group + 2) * dim)
    query_at = row + head * dim + half[None, :]
    key_at = row + (heads * group + key_head) * dim + half[None, :]
    q1, q2 = tl.load(query_at).to(tl.float32), tl.load(query_at + dim // 2).to(tl.float32)
    n1, n2 = tl.load(key_at).to(tl.float32), tl.load(key_at + dim // 2).to(tl.float32)
    new = tl.load(row + (heads * (group + 1) + key_head) * dim + whole[None, :])
    c, s = cosine + here * dim, sine + here * dim
    q1, q2 = _rotated(q1, q2, query_gain, c, s, half, eps, dim, normed)
    n1, n2 = _rotated(n1, n2, key_gain, c, s, half, eps, dim, normed)
    q1, q2, n1, n2 = q1.to(element), q2.to(element), n1.to(element), n2.to(element)
    if (here < start + chunk) & (head % group == 0):
        spot = base + here.to(tl.int64) * dim
        tl.store(keys + spot + half[None, :], n1)
        tl.store(keys + spot + dim // 2 + half[None, :], n2)
        tl.store(values + spot + whole[None, :], new)
    newest = (token == here)[:, None]
    k1, k2, v = tl.where(newest, n1, k1), tl.where(newest, n2, k2), tl.where(newest, new, v)
    scores = tl.sum(k1.to(tl.float32) * q1.to(tl.float32) + k2.to(tl.float32) * q2.to(tl.float32), axis=1) * scaling
    scores = tl.where(token <= here, scores, float("-inf"))
    best = tl.max(scores, axis=0)
    parts = tl.exp(scores - best)
    weight = tl.sum(parts, axis=0)
    total = tl.sum(parts[:, None] * v.to(tl.float32), axis=0)
    part = owner * splits + split
    tl.store(sums + part * dim + whole, total)
    tl.store(extremes + part * 2, best)
    tl.store(extremes + part * 2 + 1, weight)
    tl.debug_barrier()  # as in `_attend`
    active = here // chunk + 1
    if tl.atomic_add(tickets + owner, 1, sem="acq_rel") != active - 1:
        return
    tl.store(tickets + owner, 0)
    _combine(out, sums, extremes, owner, active, splits, 1, 1, dim, together)


@triton.jit
def _combine(
    out, sums, extremes, owner, active, splits, group: tl.constexpr, some: tl.constexpr, dim: tl.constexpr,
    together: tl.constexpr,
):  # fmt: skip
    """The parts of one head, added in the order of the tokens."""
    member, whole = tl.arange(0, some), tl.arange(0, dim)
    best = tl.full([some], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([some], dtype=tl.float32)
    total = tl.zeros([some, dim], dtype=tl.float32)
    for begin in range(0, active, together):
        split = begin + tl.arange(0, together)
        there = (split < active)[:, None] & (member < group)[None, :]
        part = (owner * splits + split)[:, None]
        most = tl.load(extremes + part * 2 * some + member[None, :], mask=there, other=float("-inf"), cache_modifier=".cg")
        mass = tl.load(extremes + (part * 2 + 1) * some + member[None, :], mask=there, other=0.0, cache_modifier=".cg")
        each = ((part * some + member[None, :]) * dim)[:, :, None] + whole[None, None, :]
        values = tl.load(sums + each, mask=there[:, :, None], other=0.0, cache_modifier=".cg")
        higher = tl.maximum(best, tl.max(most, axis=0))
        shrink, grow = tl.exp(best - higher), tl.exp(most - higher[None, :])
        grow = tl.where(there, grow, 0.0)
        shrink = tl.where(member < group, shrink, 0.0)
        weight = weight * shrink + tl.sum(mass * grow, axis=0)
        total = total * shrink[:, None] + tl.sum(values * grow[:, :, None], axis=0)
        best = higher
    target = out + (owner * group + member)[:, None] * dim + whole[None, :]
    tl.store(target, total / weight[:, None], mask=(member < group)[:, None])


@dataclass(frozen=True)
class Scratch:
    """Where the programs of one launch leave their parts, for caches read up to some reach; launches one after another share it.

    Attributes:
        chunks: chunks that one program walks; with one chunk and few splits every query head has programs of its own.
        splits: programs that share the tokens of one head.
    """

    sums: Tensor
    extremes: Tensor
    tickets: Tensor
    chunks: int
    splits: int


def make_scratch(heads: Heads, batch: int, reach: int, device: torch.device) -> Scratch:
    """Room for the parts of `batch` sequences of at most `reach` tokens."""
    needed = -(-reach // CHUNK)
    chunks = -(-needed // SPLITS)
    splits = -(-needed // chunks)
    rows = batch * heads.keys * triton.next_power_of_2(heads.group)
    return Scratch(
        torch.empty(rows * splits * heads.dim, dtype=torch.float32, device=device),
        torch.empty(rows * splits * 2, dtype=torch.float32, device=device),
        torch.zeros(rows, dtype=torch.int32, device=device), chunks, splits,
    )  # fmt: skip


def attend(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    heads: Heads,
    scratch: Scratch,
    out: Tensor,
) -> Tensor:
    """As `featherweight.kernels.reference.decode_attention.attend`."""
    absent, options = cosine, launch_options(qkv.device)
    group, some, splits, batch = heads.group, triton.next_power_of_2(heads.group), scratch.splits, keys.shape[0]
    query_gain = absent if heads.query_gain is None else heads.query_gain
    key_gain = absent if heads.key_gain is None else heads.key_gain
    normed = heads.query_gain is not None
    common = (
        qkv, cosine, sine, keys, values, position, query_gain, key_gain, out, scratch.sums, scratch.extremes, scratch.tickets,
        keys.shape[2], splits, heads.scaling, heads.eps, heads.keys, group,
    )  # fmt: skip
    if splits <= FEW and scratch.chunks == 1:
        _attend_once[(batch * heads.keys * group, splits)](
            *common, heads.dim, CHUNK, TOGETHER, normed, num_warps=WARPS, **options
        )
    else:
        _attend[(batch * heads.keys, splits)](
            *common, max(16, some), some, heads.dim, CHUNK, scratch.chunks, TOGETHER, normed, num_warps=WARPS, **options
        )
    return out
