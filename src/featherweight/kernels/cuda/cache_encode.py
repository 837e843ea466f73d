"""Coding tokens for the cache in one CUDA launch each: signs of keys, integers of keys and values."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda.cache_attention import Launch, launch_on_device
from featherweight.kernels.cuda.cache_layout import NUMBERS, STAGE, Rows
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.reference import integer_encode as reference
from featherweight.kernels.reference import qjl as sketch_reference

#: Of the kernels: channels of a head, which are threads of a block; tokens of a block where each is coded alone; what a sketch needs.
HEAD_DIM, TOKENS = 128, 32
#: Keys that a block of the kernel for many reads at once; blocks of work from which on there are many.
TILE, MANY = 128, 64
SKETCH_ROOM = 4 * HEAD_DIM * (STAGE + 4) + 5 * HEAD_DIM + 16


class Encoding(ctypes.Structure):
    """`Encoding` of `cache_encode.cu`."""

    _fields_ = (("source", Rows), ("targets", Rows * 5), ("projection", ctypes.c_void_p), ("tokens", ctypes.c_int))


class Sketching(ctypes.Structure):
    """`Sketching` of `cache_sketch.cu`."""

    _fields_ = (
        ("source", Rows), ("targets", Rows * 5), ("fragments", ctypes.c_void_p), ("pairs", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "heads", "sequences")),
    )  # fmt: skip


def unsupported(head_dim: int, dtype: str, settings: Mapping[str, object]) -> str:
    """Why the kernels do not code tokens so; "" if they do. `settings` as in the ops `integer_encode` and `qjl_encode`."""
    if head_dim != HEAD_DIM or dtype not in ("bfloat16", "float16"):
        return f"codes heads of {HEAD_DIM} in 16 bits, not of {head_dim} in {dtype}"
    if reason := _FAILED.get(("cache_encode", "sketch" in settings)):
        return reason
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


#: Why a kernel did not compile or start, by its name and whether it sketches; from then on another codes.
_FAILED: dict[tuple[str, bool], str] = {}


def integer_encode(exact: Tensor, bits: int, axis: str, group: int, launch: Launch = launch_on_device) -> dict[str, Tensor]:
    """As `featherweight.kernels.reference.integer_encode` on a CPU, bit for bit; heads of 128."""
    tokens, entries = exact.shape[2], exact.shape[2] // group if axis == "channel" else exact.shape[2]
    scales = HEAD_DIM if axis == "channel" else HEAD_DIM // group
    made = {
        "codes": _empty(exact, (tokens, HEAD_DIM * bits // 8), torch.uint8),
        "scale": _empty(exact, (entries, scales), exact.dtype), "minimum": _empty(exact, (entries, scales), exact.dtype),
    }  # fmt: skip
    codec, blocks = (2, entries) if axis == "channel" else (4, -(-tokens // TOKENS))
    try:
        _run(exact, made, None, blocks, {"CODEC": codec, "CODE_BITS": bits, "CODE_GROUP": group}, group * HEAD_DIM, launch)
    except FeatherweightError:
        return reference.integer_encode(exact, bits, axis, group)
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
    many = (
        keys.shape[0] * keys.shape[1] * -(-tokens // TILE) >= MANY and sketch in (128, 256, 512) and outlier_sketch % 128 == 0
    )
    if many:
        with suppress(FeatherweightError):
            _sketch(keys, made, projection, constants, launch)
            return made
    try:
        _run(keys, made, projection, tokens // group, constants, SKETCH_ROOM, launch)
    except FeatherweightError:
        return sketch_reference.qjl_encode(keys, projection, outliers, outlier_sketch, group)
    return made


def _sketch(keys: Tensor, made: Mapping[str, Tensor], projection: Tensor, constants: Mapping[str, int], launch: Launch) -> None:
    """Many keys: see `cache_sketch.cu`."""
    source, pieces = _readable(keys), sketch_pieces(projection, keys.dtype)
    told = Sketching(
        source=Rows.of(source), fragments=pieces[0].data_ptr(), pairs=pieces[1].data_ptr(), tokens=keys.shape[2],
        heads=keys.shape[1], sequences=keys.shape[0],
    )  # fmt: skip
    for at, tensor in enumerate(made.values()):
        told.targets[at] = Rows.of(tensor)
    width, outliers = min(256, constants["SKETCH"]), constants["OUTLIERS"]
    shared = (
        2 * TILE * (2 * HEAD_DIM + 64)
        + (4 * HEAD_DIM * (width + 4) if outliers else 0)
        + (1 + bool(outliers)) * TILE * width // 8
    )
    shared += TILE // STAGE * (6 * HEAD_DIM + 8)
    slices, tiles = constants["SKETCH"] // width, keys.shape[0] * keys.shape[1] * -(-keys.shape[2] // TILE)
    grid = (min(tiles, max(1, processors(keys.device) // slices)), slices, 1)
    given = {name: constants[name] for name in ("SKETCH", "OUTLIERS", "OUTLIER_SKETCH")}
    _launch(launch, "cache_sketch", keys, given, grid, width, shared, told)


_PIECES = WeakTensorKeyDictionary()


def sketch_pieces(projection: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`S` as two pieces of 16 bits that add up to it: fragments of the matrix unit, and pairs by channel and column; made once."""
    made = _PIECES.setdefault(projection, {})
    if dtype not in made:
        high = projection.to(dtype)
        both = torch.stack([high, (projection - high.to(torch.float32)).to(dtype)])  # [piece, channel, column]
        device, length = projection.device, projection.shape[1]
        step, quarter, pair, half = (torch.arange(count, device=device) for count in (8, 4, 2, 2))
        channels = _sums(32 * (step // 2) + 4 * (step % 2), 8 * quarter, 2 * pair, half)
        warp, columns, row = (torch.arange(count, device=device) for count in (length // 32, 4, 8))
        places = _sums(32 * warp, 2 * columns, 8 * (row // 2) + row % 2)
        picked = both[:, channels][..., places]  # piece, step, quarter, pair, half, warp, columns, row
        made[dtype] = picked.permute(5, 0, 1, 6, 7, 2, 3, 4).contiguous(), both.permute(1, 2, 0).contiguous()
    fragments, pairs = made[dtype]
    return fragments, pairs


def _sums(*parts: Tensor) -> Tensor:
    """All sums of an entry of each, a dimension for each."""
    total = parts[0]
    for part in parts[1:]:
        total = total.unsqueeze(-1) + part
    return total


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(*like.shape[:2], *shape, dtype=dtype, device=like.device)


def _run(
    exact: Tensor, made: Mapping[str, Tensor], projection: Tensor | None, blocks: int, constants: Mapping[str, int], shared: int,
    launch: Launch,
) -> None:  # fmt: skip
    source = _readable(exact)  # held until the launch
    told = Encoding(Rows.of(source), tokens=exact.shape[2], projection=0 if projection is None else projection.data_ptr())
    for at, tensor in enumerate(made.values()):
        told.targets[at] = Rows.of(tensor)
    _launch(launch, "cache_encode", exact, constants, (blocks, exact.shape[1], exact.shape[0]), HEAD_DIM, shared, told)


def _readable(exact: Tensor) -> Tensor:
    """The tokens of a head one after another, on 16 bytes; a copy where they do not lie so."""
    aligned = exact.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in exact.stride()[:2])
    return exact if aligned and exact.numel() and exact[0, 0].is_contiguous() else exact.contiguous()


def _launch(
    launch: Launch, name: str, exact: Tensor, constants: Mapping[str, int], grid: tuple[int, int, int], threads: int, shared: int,
    told: ctypes.Structure,
) -> None:  # fmt: skip
    if not exact.numel():
        return
    constants = {"NUMBER": NUMBERS[exact.dtype], "HEAD_DIM": HEAD_DIM, **constants}
    kernel = name, "SKETCH" in constants
    if kernel in _FAILED:
        raise FeatherweightError("a kernel failed before", found=_FAILED[kernel])
    try:
        launch(f"{name}.cu", name, constants, grid, threads, shared, (told,), exact.device)
    except FeatherweightError as problem:
        _FAILED[kernel] = str(problem).splitlines()[0]
        raise
