"""Launches of the integer kernel for some tokens, up to 16: every warp keeps its activations in registers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK, ROWS
from featherweight.kernels.cuda.multiply import WeightsArgument, address, load_kernel

#: Inputs of a warp.
UNIT = 256


@dataclass(frozen=True)
class KeptShape:
    """How the work is cut.

    Attributes:
        splits: blocks that share the inputs, as a cluster: 1, 2, 4, 8.
        input_warps, row_warps: of a block; input warps, an even number, times splits cover all units of 256 inputs.
        stages: tiles of 16 outputs that a warp has in flight.
        resident: blocks that registers must leave room for on a multiprocessor.
        ahead: tiles that are asked for before the activations, which then have to wait for these.
    """

    splits: int
    input_warps: int
    row_warps: int
    stages: int
    resident: int
    ahead: int = 1


def multiply_kept(x: Tensor, weight: DeviceCodes, bias: Tensor | None, y: Tensor, shape: KeptShape) -> Tensor:
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]`, as `multiply`."""
    tokens, threads = len(x), 32 * shape.input_warps * shape.row_warps
    constants = {"TILES": 1, "COLUMNS": 1 if tokens <= 8 else 2, "SPLITS": shape.splits, "STAGES": shape.stages}
    constants |= {
        "INPUT_WARPS": shape.input_warps,
        "ROW_WARPS": shape.row_warps,
        "RESIDENT": shape.resident,
        "AHEAD": shape.ahead,
    }
    function = load_kernel("multiply_kept", weight, x.dtype, UNIT, constants, x.device, "kept.cu")
    groups, shared = -(-len(weight.codes) // shape.row_warps), shared_bytes(weight, shape, tokens)
    blocks = min(groups, function.clusters_at_once(threads, shared, shape.splits))
    paired = weight.rows % 2 == 0 and y.stride(0) % 2 == 0 and address(y) % 4 == 0
    numbers = (weight.rows, weight.inputs, tokens, x.stride(0), y.stride(0), int(paired), groups // blocks, groups % blocks)
    function.launch(
        (blocks, shape.splits, 1),
        (threads, 1, 1),
        shared,
        [
            WeightsArgument.of(weight, UNIT),
            *(ctypes.c_void_p(address(each)) for each in (x, y, bias)),
            *map(ctypes.c_int, numbers),
        ],
        cluster=shape.splits,
    )
    return y


def shared_bytes(weight: DeviceCodes, shape: KeptShape, tokens: int) -> int:
    """Of a block: what its warps have in flight, their sums of two rounds, those of other blocks, and what zero points contribute."""
    warps, pairs, group = shape.input_warps * shape.row_warps, 4 if tokens <= 8 else 8, min(weight.group or BLOCK, BLOCK)
    scales = UNIT // BLOCK * 32 * (2 * BLOCK // group * weight.scales.element_size())
    zeros = UNIT // BLOCK * 32 * max(4, 2 * BLOCK // group) if weight.zeros is not None else 0
    part = ROWS * UNIT * weight.bits // 8 + scales + zeros
    sent = 4 * shape.row_warps * pairs * 128 if shape.splits > 1 else 0
    return warps * (shape.stages * part + 320 * pairs + UNIT // group * pairs * 16) + sent + 64
