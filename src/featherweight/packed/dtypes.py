"""Names of dtypes as they stand in descriptions."""

from __future__ import annotations

import torch

from featherweight.errors import FeatherweightError, nearest

_BY_NAME = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int16,
        torch.int32,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.float8_e8m0fnu,
    )
}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` → `"float16"`."""
    return str(dtype).removeprefix("torch.")


def dtype_from(name: str | torch.dtype) -> torch.dtype:
    """`"float16"` → `torch.float16`; a dtype stays as it is.

    Raises:
        FeatherweightError: a name that no stored tensor has.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in _BY_NAME:
        raise FeatherweightError(
            "unknown dtype", found=name, expected=", ".join(_BY_NAME), fix=f"use {nearest(name, _BY_NAME, 1)[0]}"
        )
    return _BY_NAME[name]
