"""How the work of a product is cut, from its sizes; found by trying on an H200 (`benchmarks/multiply.py`)."""

from __future__ import annotations

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import STEP
from featherweight.kernels.cuda.multiply import SHARED_BYTES, Shape


def choose_shape(weight: DeviceCodes, tokens: int, processors: int) -> Shape:
    """The cut for a weight and so many tokens on a device with so many multiprocessors.

    Every block stays on its multiprocessor and walks through groups of outputs. Few tokens: two blocks each, all warps along the
    inputs. More: one block, and a cluster of blocks shares the inputs if their activations do not fit into shared memory.
    """
    inputs = -(-weight.inputs // STEP) * STEP
    if tokens <= 4:
        unit = 512 if weight.bits < 8 and inputs % 512 == 0 else 256
        return Shape(unit, 1, 1, min(8, inputs // unit), 2, 1, 2 * processors)
    splits = 1
    while splits < 8 and tokens * inputs * 2 * 9 // 8 // splits > SHARED_BYTES * 3 // 4:
        splits *= 2
    return Shape(256, 2, 2, min(8, inputs // 256 // splits or 1), 1, splits, processors // splits or 1)
