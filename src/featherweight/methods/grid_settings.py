"""Grids by the names that recipes use, and what each of them settles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import FloatingGrid
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.methods.base import Method
from featherweight.packed.dtypes import dtype_from

GridName = Literal["integer", "fp8", "fp4", "nvfp4", "mxfp4"]
ScaleDtype = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu"]

#: The element format of the floating grids.
ELEMENTS = {"fp8": "e4m3", "fp4": "e2m1", "nvfp4": "e2m1", "mxfp4": "e2m1"}

#: Settings that a grid has of necessity, and those that it starts from where a recipe says nothing.
FIXED: dict[str, Mapping[str, Any]] = {
    "fp8": {"bits": 8, "symmetric": True},
    "fp4": {"bits": 4, "symmetric": True},
    "nvfp4": {"bits": 4, "symmetric": True, "group_size": 16, "scale_dtype": "float8_e4m3fn"},
    "mxfp4": {"bits": 4, "symmetric": True, "group_size": 32, "scale_dtype": "float8_e8m0fnu"},
}
DEFAULTS: dict[str, Mapping[str, Any]] = {
    "fp8": {"group_size": None, "scale_dtype": "bfloat16"},
    "fp4": {"group_size": 32, "scale_dtype": "bfloat16"},
}


def completed(method: type[Method], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """`settings` of a method, with those that their `grid` settles filled in where they are left out."""
    grid, known = settings.get("grid"), {field.name for field in fields(method)}
    settled = {**FIXED.get(str(grid), {}), **DEFAULTS.get(str(grid), {})}
    return {**{name: value for name, value in settled.items() if name in known}, **settings}


def check_grid(name: str, grid: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of the method `name` that contradict its grid.

    Raises:
        FeatherweightError: it names the setting and the grid that has it.
    """
    if grid == "integer" and str(settings["scale_dtype"]).startswith("float8"):
        raise FeatherweightError(
            "integers have no scales of 8 bits", found=settings["scale_dtype"], expected="float16, bfloat16",
            fix="use scale_dtype: float16, or grid: nvfp4 or mxfp4",
        )  # fmt: skip
    for setting, value in FIXED.get(grid, {}).items():
        if settings[setting] != value:
            free = grid in ("nvfp4", "mxfp4") and setting in ("group_size", "scale_dtype")
            other = "grid: fp4" if free else "grid: integer"
            raise FeatherweightError(
                f"{name}: {setting} does not fit grid {grid}", found=f"{setting}: {_yaml(settings[setting])}",
                expected=f"{setting}: {_yaml(value)}", fix=f"leave {setting} out, or use {other}, which has any",
            )  # fmt: skip


def make_grid(grid: str, bits: int, symmetric: bool, fit: Fit, scale_dtype: str) -> UniformGrid | FloatingGrid:
    """The grid of these settings; a floating one not yet over a weight."""
    if grid == "integer":
        return UniformGrid(bits, symmetric, fit, dtype_from(scale_dtype))
    return FloatingGrid(ELEMENTS[grid], dtype_from(scale_dtype), fit)


def _yaml(value: Any) -> str:
    """As a recipe writes it."""
    return json.dumps(value).strip('"')
