"""How the work of a product is cut, from its sizes; found by trying on an H200 (`benchmarks/multiply.py`)."""

from __future__ import annotations

from dataclasses import replace

from featherweight.kernels.cuda import kept
from featherweight.kernels.cuda.batch import UNIT, BatchShape, shared_bytes
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK, ROWS, STEP
from featherweight.kernels.cuda.multiply import SHARED_BYTES, Shape, memory_of

#: Outputs and inputs of which one token is faster by another cut; blocks to a multiprocessor (`benchmarks/decode_tune.py`).
MEASURED = {(4096, 11008): Shape(512, 1, 2, 8, 1, 1, 1)}

#: Tokens from which on `kept` is faster than `multiply`.
FEWEST_KEPT = 2

#: Tokens up to which `batch` is faster than dense values and torch's product.
MOST_BATCHED = 256


def choose_shape(weight: DeviceCodes, tokens: int, processors: int) -> Shape:
    """The cut for a weight and so many tokens on a device with so many multiprocessors.

    Every block stays on its multiprocessor and walks through groups of outputs, its warps side by side along the inputs. Two
    blocks each where the activations leave room for them, one otherwise; where one is too little, a cluster of blocks shares the
    inputs.
    """
    measured = MEASURED.get((weight.rows, weight.inputs)) if tokens == 1 and weight.bits < 8 else None
    if measured is not None:
        return replace(measured, blocks=measured.blocks * processors)
    shape = _wanted_shape(-(-weight.inputs // STEP) * STEP, weight.bits, tokens, processors)
    if tokens <= 4 and shape.tiles == 1 and (weight.group == 0 or weight.group >= BLOCK):  # else registers would not do
        shape = replace(shape, held=2)
    shape = replace(shape, arranged=tokens > 4)
    while shape.input_warps > 1 and memory_of(weight, shape, tokens)[2] > SHARED_BYTES // shape.resident - 1024:
        shape = replace(shape, input_warps=shape.input_warps // 2)
    return shape


def _wanted_shape(inputs: int, bits: int, tokens: int, processors: int) -> Shape:
    unit = 512 if bits < 8 and inputs % 512 == 0 else 256
    size = tokens * inputs * 2 * (unit + 32) // unit
    if size <= SHARED_BYTES * 3 // 8:
        return Shape(unit, 1, 1, min(8, inputs // unit), 2, 1, 2 * processors)
    if tokens <= 8 and inputs >= 2048:
        return Shape(256, 2, 4, 4, 1, 2, processors // 2 or 1)
    splits = 1
    while splits < 8 and size // splits > SHARED_BYTES * 3 // 4:
        splits *= 2
    return Shape(unit, 1, 2, min(8, max(1, inputs // unit // splits)), 1, splits, max(1, processors // splits))


def choose_kept(weight: DeviceCodes, tokens: int, processors: int) -> kept.KeptShape | None:
    """The cut of `multiply_kept`; None for weights that are too wide for it.

    Two blocks of eight warps to a multiprocessor where few blocks cover the inputs, else one of sixteen. Activations of more tokens
    must not wait for many tiles of weights.
    """
    units = -(-weight.inputs // kept.UNIT)
    resident, warps = (2, 8) if units <= 16 else (1, 16)
    splits = next((each for each in (1, 2, 4, 8) if units <= warps * each), 0)
    if not splits:
        return None
    input_warps = max(2, (-(-units // splits) + 1) // 2 * 2)
    row_warps = warps // input_warps
    rounds = -(-weight.rows // (ROWS * row_warps * max(1, resident * processors // splits)))
    most = max(2, min(rounds, 3 if tokens > 8 else 4))
    for stages in range(most, 0, -1):
        ahead = min(stages, 1 if tokens > 8 or rounds <= 2 else 2)
        shape = kept.KeptShape(splits, input_warps, row_warps, stages, resident, ahead)
        if kept.shared_bytes(weight, shape, tokens) <= SHARED_BYTES // resident - 1024:
            return shape
    return None


def choose_batch(weight: DeviceCodes, tokens: int, processors: int) -> BatchShape:
    """The cut for more tokens: as many rows to a block as leave a block for most multiprocessors, inputs shared by two if need be."""
    size = 32 if tokens <= 32 else 64
    units, token_blocks = weight.codes.shape[1] * 2 // (weight.bits * UNIT), -(-tokens // size)
    sharing = 2 if token_blocks == 1 and units > 1 else 1
    blocks = {groups: -(-weight.rows // (64 * groups)) * token_blocks for groups in (4, 2, 1)}
    groups = next((groups for groups in blocks if blocks[groups] * sharing >= 0.8 * processors), 1)
    splits = sharing if blocks[groups] * sharing <= 1.1 * processors else 1
    shape = BatchShape(size, groups, 8, splits, groups == 2 or (size == 32 and groups == 4))
    while shape.stages > 1 and shared_bytes(weight, shape) > SHARED_BYTES - 1024:
        shape = replace(shape, stages=shape.stages - 1)
    return shape
