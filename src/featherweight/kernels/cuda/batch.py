"""Launches of the integer kernel for some dozens or hundreds of tokens: codes to the matrix unit by four warps at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK
from featherweight.kernels.cuda.multiply import WeightsArgument, address, load_kernel

#: Inputs of a stage.
UNIT = 256

#: Threads that bring one token's activations into order.
_INPUT_THREADS = 256


@dataclass(frozen=True)
class BatchShape:
    """How the work is cut.

    Attributes:
        tokens: of a block: 8, 16, 32, 64, 128.
        warp_groups: of a block, 64 outputs each: 1, 2, 4.
        stages: units of 256 inputs in flight.
        splits: blocks that share the inputs of the same outputs.
        ahead: decode a group's codes while the group before is multiplied; for up to 32 tokens to a block there are registers for it.
    """

    tokens: int
    warp_groups: int = 4
    stages: int = 3
    splits: int = 1
    ahead: bool = False


def runs_on(device: torch.device) -> bool:
    """Whether a device has the instructions: compute capability 9.0 and no other."""
    return device.type == "cuda" and _capability(device) == (9, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def multiply_batch(x: Tensor, weight: DeviceCodes, bias: Tensor | None, y: Tensor, shape: BatchShape) -> Tensor:
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]`, as `multiply`, for any number of tokens."""
    tokens, rows = len(x), 64 * shape.warp_groups
    constants = {"TILES": 1, "TOKENS": shape.tokens}
    units = weight.codes.shape[1] * 2 // (weight.bits * UNIT)
    token_blocks, groups = -(-tokens // shape.tokens), -(-weight.rows // rows)
    blocks = groups * token_blocks
    images = torch.empty(token_blocks * units * image_bytes(weight, shape), dtype=torch.uint8, device=x.device)
    factors = torch.empty(tokens, dtype=torch.float32, device=x.device)
    partial = arrivals = None
    if shape.splits > 1:
        partial = torch.empty(blocks * shape.splits * shape.tokens * (rows + 4), dtype=torch.float32, device=x.device)
        arrivals = torch.empty(blocks, dtype=torch.int32, device=x.device)
    load_kernel("batch_inputs", weight, x.dtype, UNIT, {**constants, "THREADS": _INPUT_THREADS}, x.device).launch(
        (tokens, 1, 1),
        (_INPUT_THREADS, 1, 1),
        _INPUT_THREADS // 8,
        [
            *_pointers(x, images, factors, arrivals),
            *map(ctypes.c_int, (weight.inputs, units, x.stride(0), 0 if arrivals is None else blocks)),
        ],
    )
    constants |= {"WARP_GROUPS": shape.warp_groups, "STAGES": shape.stages, "SPLITS": shape.splits, "AHEAD": int(shape.ahead)}
    numbers = (weight.rows, tokens, y.stride(0), token_blocks, -(-units // shape.splits))
    pointers = _pointers(images, factors, y, bias, partial, arrivals)
    load_kernel("multiply_batch", weight, x.dtype, UNIT, constants, x.device, "batch.cu").launch(
        (blocks, shape.splits, 1),
        (2 * rows, 1, 1),
        shared_bytes(weight, shape),
        [WeightsArgument.of(weight, UNIT), *pointers, *map(ctypes.c_int, numbers)],
    )
    return y


def image_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of the activations of a block's tokens for one unit."""
    return shape.tokens * (2 * UNIT + UNIT // min(weight.group or BLOCK, BLOCK) * 4)


def shared_bytes(weight: DeviceCodes, shape: BatchShape) -> int:
    """Of a block: stages and their barriers, or the sums of all its outputs."""
    rows, warps = 64 * shape.warp_groups, 4 * shape.warp_groups
    grids = (
        8 * (UNIT // min(weight.group or BLOCK, BLOCK)) * (2 * weight.scales.element_size() + 2 * (weight.zeros is not None))
    )
    stage = image_bytes(weight, shape) + rows * UNIT * weight.bits // 8 + warps * grids + 8 * (warps + 2)
    return max(shape.stages * stage, 4 * shape.tokens * (rows + 4) + 16)


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address(each)) for each in tensors]
