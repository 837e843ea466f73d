"""One token's attention over a short static cache, by clusters of blocks that put their parts together in shared memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.multiply import ACTIVATIONS
from featherweight.kernels.decoding import Heads

#: Threads of a block; blocks of a cluster, at most; tokens up to which every query head reads for itself.
THREADS, SPLITS, REACH = 128, 8, 1024

#: Tokens that a place takes before it begins again.
_PASSES = 8


def attend(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    heads: Heads,
    scratch: int,
    out: Tensor,
) -> Tensor:
    """As `featherweight.kernels.reference.decode_attention.attend`, for bf16 and fp16; the position is below `scratch`."""
    constants = {
        "ACTIVATION": ACTIVATIONS[qkv.dtype], "DIM": heads.dim, "KEYS": heads.keys, "GROUP": heads.group,
        "NORMED": int(heads.query_gain is not None), "THREADS": THREADS,
    }  # fmt: skip
    function = driver.load("attend.cu", "attend", driver.constants_of(constants), qkv.device)
    places = THREADS // (heads.dim // 8)
    splits = next((splits for splits in (1, 2, 4) if splits * places * _PASSES >= scratch), SPLITS)
    tensors = (qkv, cosine, sine, keys, values, position, heads.query_gain, heads.key_gain, out)
    function.launch(
        (keys.shape[0] * heads.keys * heads.group, splits, 1),
        (THREADS, 1, 1),
        4 * (places + 1) * (heads.dim + 2),
        [*(ctypes.c_void_p(0 if tensor is None else tensor.data_ptr()) for tensor in tensors), ctypes.c_int(keys.shape[2]),
         ctypes.c_float(heads.scaling), ctypes.c_float(heads.eps)],
        cluster=splits,
    )  # fmt: skip
    return out


def make_scratch(heads: Heads, batch: int, reach: int, device: torch.device) -> int:
    """No memory is needed, only how far tokens reach."""
    return reach
