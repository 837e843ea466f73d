"""What the kernels of cache attention are compiled for and told, out of a codec's settings, codes and constants."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from featherweight.kernels.cache_part import CachePart

#: Tokens that a warp reads at once, query heads of a program: `STAGE`, `HEADS` of `cache.cuh`.
STAGE, HEADS = 32, 4

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
        stage = STAGE * (sketch // 8 + 2) + (STAGE * (apart // 8 + 2) + 16 if apart else 0)
        steps = -(-sketch // 256)
        names = ("signs", "norm", *(("outlier_signs", "outlier_norm", "outliers") if apart else ()))
        return Side(constants, names, stage, 2048 * steps + 8 * HEADS + 4 * HEADS * head_dim)
    constants = {"KEYS": 2, "KEY_BITS": settings["bits"], "KEY_GROUP": settings["group_size"]}
    return Side(constants, ("codes", "scale", "minimum"), STAGE * head_dim * settings["bits"] // 8 + 4 * head_dim)


def value_side(part: CachePart, head_dim: int) -> Side:
    """Of values that the kernels read."""
    settings = part.settings
    constants = {"VALUES": 1, "VALUE_BITS": settings["bits"], "VALUE_GROUP": settings["group_size"]}
    stage = STAGE * (head_dim * settings["bits"] // 8 + 4 * (head_dim // settings["group_size"]))
    return Side(constants, ("codes", "scale", "minimum"), stage)


def supported(keys: Mapping[str, Any], values: Mapping[str, Any], head_dim: int) -> str:
    """Why the kernels do not read these codecs; "" if they do."""
    if values["codec"] != "integer" or values["axis"] != "token" or values["bits"] not in (2, 4, 8):
        return "values by integers of 2, 4 or 8 bits along channels"
    if head_dim not in (64, 128) or head_dim * values["bits"] % 256:
        return "heads of 128, or of 64 with 4 or 8 bits"
    if head_dim % values["group_size"] or head_dim // values["group_size"] not in (1, 2, 4):
        return "1, 2 or 4 groups of channels in a value"
    if keys.get("window", 0) > values["window"]:
        return "a window of values no shorter than that of keys"
    if keys["codec"] == "qjl":
        if keys["outliers"] not in (0, 8) or (keys["outliers"] and keys["group_size"] != STAGE):
            return f"no outliers, or 8 of {STAGE} tokens"
        return ""
    if keys["codec"] == "integer" and keys["axis"] == "channel" and keys["bits"] in (2, 4):
        return (
            ""
            if keys["group_size"] % STAGE == 0 and head_dim == 128
            else f"keys in groups of whole {STAGE} tokens, heads of 128"
        )
    return f"keys of {keys['codec']} of another kind"


_TABLES = WeakTensorKeyDictionary()


def qjl_table(projection: Tensor, apart: int, constant: float) -> Tensor:
    """Rows of `S` as the columns of a product with signs: `TABLE_SUMS` and around it in `cache_keys_qjl.cuh`; made once.

    Args:
        projection: `S [head_dim, m]`.
        apart: signs of the outliers' sketch.
        constant: `c`.
    """
    if projection not in _TABLES:
        parts = [_columns(projection[:, :length]) for length in (projection.shape[1], apart)]
        sums = [projection[:, :length].sum(1) * (constant / length) for length in (projection.shape[1], apart)]
        units = torch.tensor(
            [2 * constant / length * unit for (_, unit), length in zip(parts, (projection.shape[1], apart), strict=True)],
            device=projection.device,
        )
        whole = torch.cat([*sums, units]).to(torch.float32)
        _TABLES[projection] = torch.cat([*(words.flatten() for words, _ in parts), whole.view(torch.int8)])
    return _TABLES[projection]


def _columns(rows: Tensor) -> tuple[Tensor, float]:
    """`[head_dim, quarter, step, bit, (high, low), half, 4]` int8 and the unit: row entries over each bit's place, in 16 bits."""
    head_dim, length = rows.shape
    unit = float(rows.abs().max()) / 32500
    whole = (rows / unit).view(head_dim, length // 8, 8) / 2.0 ** torch.arange(8, device=rows.device)
    whole = whole.round().to(torch.int32).view(head_dim, 4, length // 128, 4, 8)  # quarter, word, byte, bit
    if length // 128 % 2:
        whole = torch.nn.functional.pad(whole, (0, 0, 0, 0, 0, 1))
    whole = whole.unflatten(2, (-1, 2)).permute(0, 1, 2, 5, 3, 4)  # head_dim, quarter, step, bit, half, byte
    low = ((whole + 128) & 255) - 128
    return torch.stack([(whole - low) >> 8, low], 4).to(torch.int8).contiguous(), unit
