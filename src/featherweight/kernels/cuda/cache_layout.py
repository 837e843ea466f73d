"""What the kernels of cache attention are compiled for and told, out of a codec's settings, codes and constants."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from featherweight.kernels.cache_part import CachePart

#: Tokens that a warp reads at once, query heads of a program: `STAGE`, `HEADS` of `cache.cuh`.
STAGE, HEADS = 32, 4

#: Bits of a sketched query: `PLANES` of `cache_keys_qjl.cuh`.
_PLANES = 12

NUMBERS = {torch.bfloat16: 0, torch.float16: 1}


class Rows(ctypes.Structure):
    """`Rows` of `cache.cuh`."""

    _fields_ = (("data", ctypes.c_void_p), ("batch", ctypes.c_longlong), ("head", ctypes.c_longlong))

    @classmethod
    def of(cls, tensor: Tensor | None) -> Rows:
        """Of `[batch, heads, entries, ...]` whose entries follow each other."""
        if tensor is None or not tensor.numel():
            return cls()
        return cls(tensor.data_ptr(), *(stride * tensor.itemsize for stride in tensor.stride()[:2]))


class Arguments(ctypes.Structure):
    """`Arguments` of `cache.cuh`."""

    _fields_ = (
        ("query", Rows), ("keys", Rows * 5), ("values", Rows * 3), ("exact_keys", Rows), ("exact_values", Rows),
        ("first_keys", Rows), ("first_values", Rows),
        *((name, ctypes.c_void_p) for name in ("prepared", "table", "levels", "rotation", "mask", "out", "partial", "tickets", "lengths")),
        *((name, ctypes.c_int) for name in ("coded_keys", "coded_values", "tokens", "first", "group", "mask_stride")),
        *((name, ctypes.c_int) for name in ("key_ring", "value_ring", "apart")),
        ("scaling", ctypes.c_float),
    )  # fmt: skip


@dataclass(frozen=True)
class Side:
    """How the keys, or the values, are read.

    Attributes:
        constants: what the kernel is compiled for.
        names: tensors of codes, in the order of the kernel.
        stage_bytes: of shared memory that `STAGE` tokens take.
        prepared_bytes: of the query of `HEADS` heads, as it is prepared for the keys; 0 where it is read as it is.
    """

    constants: Mapping[str, int]
    names: tuple[str, ...]
    stage_bytes: int
    prepared_bytes: int = 0


def key_side(part: CachePart, head_dim: int) -> Side:
    """Of keys that the kernels read; see `supported`."""
    settings = part.settings
    if settings["codec"] == "qjl":
        sketch = 8 * part.codes["signs"].shape[-1]
        apart = 8 * part.codes["outlier_signs"].shape[-1] if settings["outliers"] else 0
        constants = {"KEYS": 1, "SKETCH": sketch, "OUTLIERS": settings["outliers"], "OUTLIER_SKETCH": apart}
        stage = STAGE * (sketch // 8 + 2) + (STAGE * (apart // 8 + 2) if apart else 0)
        names = ("signs", "norm", *(("outlier_signs", "outlier_norm", "outliers") if apart else ()))
        lane = -(-sketch // 128 * _PLANES // 2 // 4) * 16
        entries = (head_dim * 8 * HEADS * (2 if apart == sketch else 4)) if apart else 0
        return Side(constants, names, stage, 32 * lane + 8 * HEADS + entries)
    if settings["codec"] == "rotated":
        group, packed = settings["group_size"] or 0, part.codes["codes"].shape[-1]
        constants = {"KEYS": 3, "KEY_BITS": settings["bits"], "KEY_GROUP": group}
        names = ("codes", "gain", *(("mean",) if group else ()))
        stage = STAGE * (packed + 2) + (2 * head_dim if group else 0)
        return Side(constants, names, stage, 1024 + 8 * HEADS)
    if settings["axis"] == "token":
        stage = STAGE * (head_dim + 4 * (head_dim // settings["group_size"]))
        constants = {"KEYS": 4, "KEY_GROUP": settings["group_size"]}
        return Side(constants, ("codes", "scale", "minimum"), stage, 1024 + 8 * HEADS)
    constants = {"KEYS": 2, "KEY_BITS": settings["bits"], "KEY_GROUP": settings["group_size"]}
    return Side(constants, ("codes", "scale", "minimum"), STAGE * head_dim * settings["bits"] // 8 + 4 * head_dim)


def value_side(part: CachePart, head_dim: int) -> Side:
    """Of values that the kernels read."""
    settings = part.settings
    if settings["codec"] == "rotated":
        packed = part.codes["codes"].shape[-1]
        return Side({"VALUES": 2, "VALUE_BITS": settings["bits"]}, ("codes", "gain"), STAGE * (packed + 2))
    constants = {"VALUES": 1, "VALUE_BITS": settings["bits"], "VALUE_GROUP": settings["group_size"]}
    stage = STAGE * (head_dim * settings["bits"] // 8 + 4 * (head_dim // settings["group_size"]))
    return Side(constants, ("codes", "scale", "minimum"), stage)


_FAILED: dict[str, str] = {}


def note_failure(keys: Mapping[str, Any], values: Mapping[str, Any], reason: str) -> None:
    """From now on `unsupported` gives this reason."""
    _FAILED[repr((dict(keys), dict(values)))] = reason


def unsupported(keys: Mapping[str, Any], values: Mapping[str, Any], head_dim: int) -> str:
    """Why the kernels do not read keys and values of codecs with these settings; "" if they do."""
    problem = _keys_problem(keys, head_dim) or _values_problem(values, head_dim)
    if not problem and keys["window"] > values["window"]:
        problem = "reads values that stay exact no shorter than keys: window of values ≥ that of keys"
    return problem or _FAILED.get(repr((dict(keys), dict(values))), "")


def _rotated_problem(settings: Mapping[str, Any], head_dim: int) -> str:
    if settings["bits"] not in (3, 4) or settings["balance"] or head_dim != 128:
        return "reads rotated codes of 3 or 4 bits, heads of 128, unbalanced"
    return ""


def _values_problem(values: Mapping[str, Any], head_dim: int) -> str:
    if values["codec"] == "rotated":
        return _rotated_problem(values, head_dim) or (
            "" if values["group_size"] is None else "reads rotated values without means"
        )
    if values["codec"] != "integer" or values["axis"] != "token" or values["bits"] not in (2, 4, 8):
        return "reads values in integers of 2, 4 or 8 bits by token, or rotated"
    if head_dim not in (64, 128) or head_dim * values["bits"] < 256:
        return "reads heads of 128, or of 64 with 4 or 8 bits"
    if head_dim % values["group_size"] or head_dim // values["group_size"] not in (1, 2, 4):
        return "reads values of 1, 2 or 4 groups"
    return ""


def _keys_problem(keys: Mapping[str, Any], head_dim: int) -> str:
    if keys["codec"] == "rotated":
        whole = (keys["group_size"] or STAGE) % STAGE == 0
        return _rotated_problem(keys, head_dim) or ("" if whole else f"reads means of whole {STAGE} tokens")
    if keys["codec"] == "qjl":
        if keys["outliers"] not in (0, 8) or (keys["outliers"] and keys["group_size"] != STAGE):
            return f"reads sketches without outliers, or with 8 for {STAGE} tokens"
        lengths = [keys["sketch"] or 32 * max(1, round(keys["ratio"] * 4 * head_dim / 32)), keys["outlier_sketch"] or 0]
        return (
            ""
            if lengths[0] in (128, 256, 512) and lengths[1] in (0, 128, 256, 512)
            else "reads sketches of 128, 256 or 512 signs"
        )
    if keys["codec"] == "integer" and keys["axis"] == "token":
        served = keys["bits"] == 8 and head_dim == 128 and keys["group_size"] in (32, 64, 128)
        return "" if served else "reads keys by token in 8 bits, groups of 32, 64 or 128 of 128 channels"
    if keys["codec"] != "integer" or keys["bits"] not in (2, 4):
        return "reads keys by qjl, rotated, or in integers of 2 or 4 bits by channel"
    if keys["group_size"] % STAGE or head_dim != 128:
        return f"reads keys of 128 in groups of whole {STAGE} tokens"
    return ""


_TABLES = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class RotatedTables:
    """What the kernels take of a rotated codec's constants.

    Attributes:
        keys: levels as bytes, of 4 bits the positive ones.
        unit: a byte's.
        values: levels as `cache_values_levels.cuh` has them.
        back: the rotation, rows for its columns.
    """

    keys: Tensor
    unit: float
    values: Tensor
    back: Tensor


def rotated_tables(constants: Mapping[str, Tensor], dtype: torch.dtype) -> RotatedTables:
    """For queries of `dtype`; made once for a rotation."""
    made = _TABLES.setdefault(constants["rotation"], {})
    if dtype not in made:
        device, levels = constants["rotation"].device, constants["levels"].cpu()
        picked = levels[8:] if len(levels) == 16 else levels
        units = picked.abs().max() / torch.arange(90, 128)
        errors = (picked - (picked / units[:, None]).round() * units[:, None]).square().sum(1)
        unit = units[errors.argmin()]
        whole = (picked / unit).round().to(torch.int8)
        halves = levels.to(dtype).view(torch.uint8).view(-1, 2)
        table = torch.cat(
            [whole.view(torch.uint8), whole.view(torch.uint8)] if len(levels) == 16 else [halves[:, 0], halves[:, 1]]
        )
        values = torch.cat([table, unit.view(1).view(torch.uint8)])
        made[dtype] = RotatedTables(
            whole.to(device), float(unit), values.to(device), constants["rotation"].T.contiguous(),
        )  # fmt: skip
    tables: RotatedTables = made[dtype]
    return tables


_SUMS = WeakTensorKeyDictionary()


@cache
def identity(size: int, device: torch.device) -> Tensor:
    """The projection of a query that is read as it is."""
    return torch.eye(size, device=device)


def row_sums(projection: Tensor) -> Tensor:
    """`[head_dim]`: what all signs being 0 stands for; made once."""
    if projection not in _SUMS:
        _SUMS[projection] = projection.sum(1).contiguous()
    return _SUMS[projection]


def qjl_table(projection: Tensor, apart: int, dtype: torch.dtype) -> Tensor:
    """Rows of `S` in 8 bits, plane by plane, their sums and units: the table of `cache_keys_qjl.cuh`; made once for a dtype.

    Args:
        projection: `S [head_dim, m]`.
        apart: signs of the outliers' sketch.
    """
    made = _TABLES.setdefault(projection, {})
    if (apart, dtype) not in made:
        unit = projection.abs().amax(1, keepdim=True) / 127
        whole = (projection / unit).round().to(torch.int32)
        sums = torch.stack([whole.sum(1), whole[:, :apart].sum(1)], 1).to(torch.float32)
        high = sums.to(dtype)
        parts = (
            _planes(whole),
            _planes(whole[:, :apart]),
            torch.stack([high, (sums - high).to(dtype)], 2),
            unit.to(torch.float32),
        )
        made[apart, dtype] = torch.cat([part.contiguous().view(torch.uint8).flatten() for part in parts])
    table: Tensor = made[apart, dtype]
    return table


def _planes(whole: Tensor) -> Tensor:
    """Bits of integers `[head_dim, m]`: 32-bit words `[head_dim, chunk, quarter, 4]`, a quarter's by planes and then as signs lie."""
    head_dim, length = whole.shape
    bits = whole[:, None] >> torch.arange(8, device=whole.device)[:, None] & 1
    words = (bits.view(head_dim, 8, length // 128, 4, 32).to(torch.int64) << torch.arange(32, device=whole.device)).sum(-1)
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # [head_dim, plane, ..., quarter]
    return signed.permute(0, 3, 1, 2).reshape(head_dim, 4, -1, 4).transpose(1, 2)
