"""A decode step's attention over keys and values in code: the new token is added by one CUDA launch, and read by the next."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cache_part import CachePart
from featherweight.kernels.coded_layer import CodedLayer, CodedSide
from featherweight.kernels.cuda import cache_encode
from featherweight.kernels.cuda.cache_attention import Launch, Lengths, Shape, attend, launch_on_device
from featherweight.kernels.cuda.cache_layout import NUMBERS, Rows, key_side, value_side
from featherweight.kernels.cuda.cache_layout import unsupported as unread
from featherweight.kernels.decoding import Heads


class Appending(ctypes.Structure):
    """`Appending` of `cache_append.cu`."""

    _fields_ = (
        ("keys", Rows), ("values", Rows), ("key_codes", Rows * 5), ("value_codes", Rows * 3),
        *((name, ctypes.c_void_p) for name in (
            "qkv", "cosine", "sine", "query_gain", "key_gain", "projection", "position", "lengths", "query"
        )),
        *((name, ctypes.c_int) for name in ("group", "key_ring", "value_ring", "key_window", "value_window")),
        ("eps", ctypes.c_float),
    )  # fmt: skip


def unsupported(keys: Mapping[str, Any], values: Mapping[str, Any], head_dim: int, dtype: str) -> str:
    """Why no step with codecs of these settings runs in these kernels; "" if one does."""
    if keys["codec"] not in ("qjl", "integer") or values["codec"] != "integer":
        return "adds keys by qjl or in integers, values in integers"
    sides = [keys, values]
    if keys["codec"] == "qjl":
        sketch = keys["sketch"] or 32 * max(1, round(keys["ratio"] * 4 * head_dim / 32))
        sides[0] = {**keys, "sketch": sketch, "outlier_sketch": keys["outlier_sketch"] or sketch}
    against = [cache_encode.unsupported(head_dim, dtype, side) for side in sides]
    return unread(keys, values, head_dim) or next((reason for reason in against if reason), "")


def attend_coded(
    qkv: Tensor, cosine: Tensor, sine: Tensor, layer: CodedLayer, position: Tensor, heads: Heads, reach: int,
    shape: Shape | None = None, launch: Launch = launch_on_device,
) -> Tensor:  # fmt: skip
    """As `featherweight.kernels.reference.coded_step.attend_coded`, with the shape of the work and the launcher given."""
    keys, values = _part(layer.keys), _part(layer.values)
    query = append(qkv, cosine, sine, layer, position, heads, launch)
    lengths = Lengths(layer.lengths, reach, rings=True)
    return attend(query, keys, values, None, heads.scaling, lengths, shape, launch).flatten(1)


def append(
    qkv: Tensor, cosine: Tensor, sine: Tensor, layer: CodedLayer, position: Tensor, heads: Heads, launch: Launch
) -> Tensor:
    """Add the token to the layer; its queries, normed and rotated, `[batch, query heads, 1, dim]`."""
    keys, values, batch = layer.keys, layer.values, qkv.shape[0]
    query = torch.empty(batch, heads.keys * heads.group, 1, heads.dim, dtype=qkv.dtype, device=qkv.device)
    sides = key_side(_part(keys), heads.dim), value_side(_part(values), heads.dim)
    given = Appending(
        keys=Rows.of(keys.ring), values=Rows.of(values.ring), qkv=qkv.data_ptr(), cosine=cosine.data_ptr(), sine=sine.data_ptr(),
        query_gain=_address(heads.query_gain), key_gain=_address(heads.key_gain),
        projection=_address(keys.constants.get("projection")), position=position.data_ptr(), lengths=layer.lengths.data_ptr(),
        query=query.data_ptr(), group=heads.group, key_ring=keys.ring.shape[2] - 1, value_ring=values.ring.shape[2] - 1,
        key_window=keys.settings["window"], value_window=values.settings["window"], eps=heads.eps,
    )  # fmt: skip
    for side, part, target in zip(sides, (keys, values), (given.key_codes, given.value_codes), strict=True):
        for at, name in enumerate(side.names):
            target[at] = Rows.of(part.codes[name])
    constants = {
        "NUMBER": NUMBERS[qkv.dtype], "HEAD_DIM": heads.dim, "NORMED": int(heads.query_gain is not None),
        **sides[0].constants, **sides[1].constants,
    }  # fmt: skip
    room = cache_encode.SKETCH_ROOM if "SKETCH" in constants else constants["KEY_GROUP"] * heads.dim
    launch("cache_append.cu", "cache_append", constants, (heads.keys, batch, 1), heads.dim, room, (given,), qkv.device)
    return query


def _part(side: CodedSide) -> CachePart:
    """With nothing in code by the host's numbers: the device's count."""
    return CachePart(side.settings, side.codes, side.constants, 0, side.ring, lambda _: side.ring)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
