"""Values of weights in chunks, dense, some outputs at a time: for products with many tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.stream import ACTIVATIONS, CHUNK, ROWS, Chunked, Work

#: Bytes of the dense values made at a time: fewer cost more launches than the second-level cache saves.
SLAB_BYTES = 128 << 20


def multiply_many(
    source: str, constants: Mapping[str, int], x: Tensor, weight: Chunked, bias: Tensor | None, y: Tensor
) -> Tensor:
    """`stream.multiply` for any number of tokens: dense values of some outputs, then torch's own product.

    Args:
        source: file of the storage's kernels.
        constants: what that file wants fixed.
        x: `[tokens, in]` bf16 or fp16.
        bias: `[out]` in the dtype of `x`.
        y: `[tokens, out]`, written.
    """
    if weight.gather is not None:
        places = weight.gather
        x = (torch.nn.functional.pad(x, (0, 1)) if len(places) > weight.inputs else x).index_select(1, places)
    width = weight.cut[1] * CHUNK
    rows = max(ROWS, SLAB_BYTES // (2 * width) // 256 * 256)
    slab = torch.empty(min(rows, weight.cut[0] * ROWS), width, dtype=x.dtype, device=x.device)
    for first in range(0, weight.rows, rows):
        values(source, constants, weight, slab, first // ROWS)
        count = min(rows, weight.rows - first)
        torch.mm(x, slab[:count, : x.shape[1]].T, out=y[:, first : first + count])
    return y if bias is None else y.add_(bias)


def values(source: str, constants: Mapping[str, int], weight: Chunked, slab: Tensor, first: int) -> Tensor:
    """The values of tiles `first` and on, as many as `slab [outputs, places]` has room for, inputs in the order of `gather`."""
    tiles, chunks, *_ = weight.cut
    count = min(len(slab) // ROWS, tiles - first)
    fixed = {
        "ACTIVATION": ACTIVATIONS[slab.dtype], "COLUMNS": 2, "WARPS": 4, "COLLECTORS": 1, "STAGES": 1, "RESIDENT": 1, "VALUES": 1,
        **constants,
    }  # fmt: skip
    tensors = (weight.chunks, weight.chunk_starts, None, slab, None, None, weight.list_starts, weight.records, None, None)
    work = Work(
        *(0 if each is None else each.data_ptr() for each in tensors),
        weight.rows, tiles, chunks, chunks, weight.segment, 1, weight.inputs, 0, 0, slab.stride(0), 1, weight.factor,
    )  # fmt: skip
    arguments: list[ctypes._SimpleCData | ctypes.Structure] = [work, ctypes.c_int(first), ctypes.c_int(count)]
    launches = {"values_stream": -(-count * chunks // 4)} | ({} if weight.records is None else {"values_list": count})
    for name, blocks in launches.items():
        function = driver.load(source, name, driver.constants_of(fixed), slab.device)
        function.launch((blocks, 1, 1), (128, 1, 1), 0, arguments)
    return slab
