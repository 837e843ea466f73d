"""Launches of the integer kernel for some dozens or hundreds of tokens: codes to the matrix unit by four warps at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK, ROWS
from featherweight.kernels.cuda.multiply import SHARED_BYTES, WeightsArgument, address, load_kernel

#: Inputs of a stage.
_UNIT = 256

#: Threads that bring one token's activations into order.
_INPUT_THREADS = 256


@dataclass(frozen=True)
class BatchShape:
    """How the work is cut.

    Attributes:
        tokens: of a block: 8, 16, 32, 64, 128.
        warp_groups: of a block, 64 outputs each: 1, 2, 4.
        stages: units of 256 inputs in flight.
        splits: blocks that share the inputs of the same outputs, as a cluster.
    """

    tokens: int
    warp_groups: int = 4
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
    units = weight.codes.shape[1] * 2 // (weight.bits * _UNIT)
    token_blocks = -(-tokens // shape.tokens)
    images = torch.empty(token_blocks * units * image_bytes(weight, shape), dtype=torch.uint8, device=x.device)
    factors = torch.empty(tokens, dtype=torch.float32, device=x.device)
    load_kernel("batch_inputs", weight, x.dtype, _UNIT, {**constants, "THREADS": _INPUT_THREADS}, x.device).launch(
        (tokens, 1, 1),
        (_INPUT_THREADS, 1, 1),
        _INPUT_THREADS // 8,
        [*_pointers(x, images, factors), *map(ctypes.c_int, (weight.inputs, units, x.stride(0)))],
    )
    constants |= {"WARP_GROUPS": shape.warp_groups, "STAGES": shape.stages, "SPLITS": shape.splits, "THREADS": threads}
    groups, share = -(-weight.rows // (4 * ROWS * shape.warp_groups)), -(-units // shape.splits)
    numbers = (weight.rows, tokens, y.stride(0), token_blocks, share)
    load_kernel("multiply_batch", weight, x.dtype, _UNIT, constants, x.device, "batch.cu").launch(
        (groups * token_blocks, shape.splits, 1),
        (threads, 1, 1),
        shared_bytes(weight, shape),
        [WeightsArgument.of(weight, _UNIT), *_pointers(images, factors, y, bias), *map(ctypes.c_int, numbers)],
        cluster=shape.splits,
    )
    return y


def image_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of the activations of a block's tokens for one unit."""
    return shape.tokens * (2 * _UNIT + _UNIT // min(weight.group or BLOCK, BLOCK) * 4)


def shared_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of a block: stages and their barriers, or the sums of all its outputs."""
    rows = 64 * shape.warp_groups
    stage = image_bytes(weight, shape) + rows * _UNIT * weight.bits // 8 + 8 * (4 * shape.warp_groups + 2)
    return max(shape.stages * stage, 4 * shape.tokens * (rows + 4))


def choose_batch(weight: DeviceCodes, tokens: int, processors: int) -> BatchShape:
    """The cut for a weight and so many tokens on a device with so many multiprocessors."""
    wanted = next((size for size in (8, 16, 32) if tokens <= size), 64)
    units = weight.codes.shape[1] * 2 // (weight.bits * _UNIT)
    blocks = -(-weight.rows // 256) * -(-tokens // wanted)
    splits = 1
    while splits < 8 and 2 * splits * blocks <= processors and units // (2 * splits) >= 2:
        splits *= 2
    shape = BatchShape(wanted, 4, 6, splits)
    while shared_bytes(weight, shape) > SHARED_BYTES - 1024:
        shape = replace(shape, stages=shape.stages - 1)
    return shape


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address(each)) for each in tensors]
