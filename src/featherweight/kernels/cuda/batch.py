"""Launches of the integer kernel for some dozens or hundreds of tokens: codes to the matrix unit by four warps at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK, ROWS
from featherweight.kernels.cuda.multiply import SHARED_BYTES, WeightsArgument, address, load_kernel

#: Threads that bring one token's activations into order.
_INPUT_THREADS = 256


@dataclass(frozen=True)
class BatchShape:
    """How the work is cut.

    Attributes:
        tokens: of a block: 8, 16, 32, 64, 128.
        warp_groups: of a block, 64 outputs each: 1, 2, 4.
        unit: inputs of a stage, 128 (not with 3 bits) or 256.
        stages: units in flight.
        splits: blocks that share the inputs of the same outputs, as a cluster.
    """

    tokens: int
    warp_groups: int = 4
    unit: int = 256
    stages: int = 3
    splits: int = 1


def runs_on(device: torch.device) -> bool:
    """Whether a device has the instructions: compute capability 9.0 and no other."""
    return device.type == "cuda" and _capability(device) == (9, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def multiply_batch(x: Tensor, weight: DeviceCodes, bias: Tensor | None, y: Tensor, shape: BatchShape) -> Tensor:
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]`, as `multiply`, for any number of tokens."""
    tokens, threads = len(x), 128 * shape.warp_groups
    constants = {"TILES": 1, "TOKENS": shape.tokens}
    units = weight.codes.shape[1] * 2 // (weight.bits * shape.unit)
    token_blocks = -(-tokens // shape.tokens)
    images = torch.empty(token_blocks * units * image_bytes(weight, shape), dtype=torch.uint8, device=x.device)
    factors = torch.empty(tokens, dtype=torch.float32, device=x.device)
    load_kernel("batch_inputs", weight, x.dtype, shape.unit, {**constants, "THREADS": _INPUT_THREADS}, x.device).launch(
        (tokens, 1, 1),
        (_INPUT_THREADS, 1, 1),
        _INPUT_THREADS // 8,
        [*_pointers(x, images, factors), *map(ctypes.c_int, (weight.inputs, units, x.stride(0)))],
    )
    constants |= {"WARP_GROUPS": shape.warp_groups, "STAGES": shape.stages, "SPLITS": shape.splits, "THREADS": threads}
    groups, share = -(-weight.rows // (4 * ROWS * shape.warp_groups)), -(-units // shape.splits)
    numbers = (weight.rows, tokens, y.stride(0), token_blocks, share)
    load_kernel("multiply_batch", weight, x.dtype, shape.unit, constants, x.device, "batch.cu").launch(
        (groups * token_blocks, shape.splits, 1),
        (threads, 1, 1),
        shared_bytes(weight, shape),
        [WeightsArgument.of(weight, shape.unit), *_pointers(images, factors, y, bias), *map(ctypes.c_int, numbers)],
        cluster=shape.splits,
    )
    return y


def image_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of the activations of a block's tokens for one unit."""
    return shape.tokens * (2 * shape.unit + shape.unit // min(weight.group or BLOCK, BLOCK) * 4)


def shared_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of a block: stages and their barriers, or the sums of all its outputs."""
    rows = 64 * shape.warp_groups
    stage = image_bytes(weight, shape) + rows * shape.unit * weight.bits // 8 + 8 * (4 * shape.warp_groups + 2)
    return max(shape.stages * stage, 4 * shape.tokens * (rows + 4))


def choose_batch(weight: DeviceCodes, tokens: int, processors: int) -> BatchShape:
    """The cut for a weight and so many tokens on a device with so many multiprocessors."""
    wanted = next((size for size in (8, 16, 32) if tokens <= size), 64)
    unit = 128 if weight.bits == 8 else 256
    units = weight.codes.shape[1] * 2 // (weight.bits * unit)
    blocks = -(-weight.rows // 256) * -(-tokens // wanted)
    splits = 1
    while splits < 8 and 2 * splits * blocks <= processors and units // (2 * splits) >= 2:
        splits *= 2
    shape = BatchShape(wanted, 4, unit, 6, splits)
    while shared_bytes(weight, shape) > SHARED_BYTES - 1024:
        shape = BatchShape(wanted, 4, unit, shape.stages - 1, splits)
    return shape


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address(each)) for each in tensors]
