"""Coding tokens for the cache in one CUDA launch each: signs of keys, integers of keys and values."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda.cache_attention import Launch, launch_on_device
from featherweight.kernels.cuda.cache_layout import NUMBERS, STAGE, Rows
from featherweight.kernels.reference.qjl import qjl_encode as reference

#: Of the kernels: channels of a head, which are threads of a block; tokens of a block where each is coded alone; what a sketch needs.
HEAD_DIM, TOKENS = 128, 32
SKETCH_ROOM = 4 * HEAD_DIM * (STAGE + 4) + 5 * HEAD_DIM + 16


class Encoding(ctypes.Structure):
    """`Encoding` of `cache_encode.cu`."""

    _fields_ = (("source", Rows), ("targets", Rows * 5), ("projection", ctypes.c_void_p), ("tokens", ctypes.c_int))


def unsupported(head_dim: int, dtype: str, settings: Mapping[str, object]) -> str:
    """Why the kernels do not code tokens so; "" if they do. `settings` as in the ops `integer_encode` and `qjl_encode`."""
    if head_dim != HEAD_DIM or dtype not in ("bfloat16", "float16"):
        return f"codes heads of {HEAD_DIM} in 16 bits, not of {head_dim} in {dtype}"
    if _FAILED:
        return _FAILED[0]
    if "sketch" in settings:
        whole = settings["group_size"] == STAGE and settings["outliers"] in (0, 8)
        lengths = (settings["sketch"], settings["outlier_sketch"] if settings["outliers"] else STAGE)
        whole = whole and all(isinstance(length, int) and length % HEAD_DIM in (0, STAGE) for length in lengths)
        whole = whole and isinstance(lengths[0], int) and lengths[0] % HEAD_DIM == 0
        return "" if whole else f"sketches {HEAD_DIM} signs at a time, with no or 8 outliers of {STAGE} tokens"
    size = settings["group_size"]
    if settings["axis"] == "channel":
        return (
            ""
            if settings["bits"] in (2, 4) and size in (32, 64, 128)
            else "codes channels in 2 or 4 bits, groups of 32, 64, 128"
        )
    return (
        "" if settings["bits"] in (2, 4, 8) and size in (32, 64, 128) else "codes tokens in 2, 4, 8 bits, groups of 32, 64, 128"
    )


#: Why a kernel did not compile or start; from then on the others code.
_FAILED: list[str] = []


def integer_encode(exact: Tensor, bits: int, axis: str, group: int, launch: Launch = launch_on_device) -> dict[str, Tensor]:
    """As `Integer.encode` on a CPU, bit for bit: `exact [batch, heads, tokens, 128]` in whole groups."""
    tokens, entries = exact.shape[2], exact.shape[2] // group if axis == "channel" else exact.shape[2]
    scales = HEAD_DIM if axis == "channel" else HEAD_DIM // group
    made = {
        "codes": _empty(exact, (tokens, HEAD_DIM * bits // 8), torch.uint8),
        "scale": _empty(exact, (entries, scales), exact.dtype), "minimum": _empty(exact, (entries, scales), exact.dtype),
    }  # fmt: skip
    codec, blocks = (2, entries) if axis == "channel" else (4, -(-tokens // TOKENS))
    _run(exact, made, None, blocks, {"CODEC": codec, "CODE_BITS": bits, "CODE_GROUP": group}, group * HEAD_DIM, launch)
    return made


def qjl_encode(
    keys: Tensor, projection: Tensor, outliers: int, outlier_sketch: int, group: int, launch: Launch = launch_on_device
) -> dict[str, Tensor]:
    """As `featherweight.kernels.reference.qjl.qjl_encode`, but for the order of its float32 sums."""
    tokens, sketch = keys.shape[2], projection.shape[1]
    made = {"signs": _empty(keys, (tokens, sketch // 8), torch.uint8), "norm": _empty(keys, (tokens,), keys.dtype)}
    if outliers:
        made |= {
            "outlier_signs": _empty(keys, (tokens, outlier_sketch // 8), torch.uint8),
            "outlier_norm": _empty(keys, (tokens,), keys.dtype),
            "outliers": _empty(keys, (tokens // group, outliers), torch.uint8),
        }
    constants = {"CODEC": 1, "CODE_GROUP": group, "SKETCH": sketch, "OUTLIERS": outliers, "OUTLIER_SKETCH": outlier_sketch}
    try:
        _run(keys, made, projection, tokens // group, constants, SKETCH_ROOM, launch)
    except FeatherweightError:
        return reference(keys, projection, outliers, outlier_sketch, group)
    return made


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(*like.shape[:2], *shape, dtype=dtype, device=like.device)


def _run(
    exact: Tensor, made: Mapping[str, Tensor], projection: Tensor | None, blocks: int, constants: Mapping[str, int], shared: int,
    launch: Launch,
) -> None:  # fmt: skip
    if not exact.numel():
        return
    aligned = exact.data_ptr() % 8 == 0 and all(stride % 4 == 0 for stride in exact.stride()[:2])
    source = exact if aligned and exact[0, 0].is_contiguous() else exact.contiguous()
    told = Encoding(Rows.of(source), tokens=exact.shape[2], projection=0 if projection is None else projection.data_ptr())
    for at, tensor in enumerate(made.values()):
        told.targets[at] = Rows.of(tensor)
    constants = {"NUMBER": NUMBERS[exact.dtype], "HEAD_DIM": HEAD_DIM, **constants}
    grid = (blocks, exact.shape[1], exact.shape[0])
    try:
        launch("cache_encode.cu", "cache_encode", constants, grid, HEAD_DIM, shared, (told,), exact.device)
    except FeatherweightError as problem:
        _FAILED.append(str(problem).splitlines()[0])
        raise
