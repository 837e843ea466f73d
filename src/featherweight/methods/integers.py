"""What the methods that round to a grid in groups of inputs have in common: grid, groups, storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import FloatingGrid
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.methods.base import Method, Steps
from featherweight.methods.grid_settings import GridName, ScaleDtype, check_grid, completed, make_grid
from featherweight.packed.base import PackedWeight
from featherweight.packed.floating import Floating
from featherweight.packed.integer import Integer
from featherweight.packed.masked import Masked
from featherweight.solvers.result import Solved

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class IntegerMethod(Method):
    """Settings of a grid per group of inputs.

    Attributes:
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: consecutive inputs that share a scale; None (or -1) for whole rows.
        symmetric: fix the zero point in the middle, so that none is stored.
        fit: how a group's range is found: "minmax", "mse", "weighted" or "clipped".
        tails: whether the last group may be smaller where the group size does not divide the inputs.
        scale_dtype: of the stored scales; "float8_e4m3fn" and "float8_e8m0fnu" with floating grids only.
        grid: "integer"; or the numbers of a floating-point format: "fp8" (E4M3), "fp4" (E2M1), "nvfp4" (E2M1 in groups of 16
            with float8_e4m3fn scales) and "mxfp4" (E2M1 in groups of 32 with scales that are powers of two). In a recipe a
            floating grid settles what is left out (`completed`).

    Raises:
        FeatherweightError: a setting outside these, or one that the grid has otherwise.
    """

    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits, "group_size": 128},) for bits in (2, 3, 4, 6, 8)}

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    fit: Fit = "minmax"
    tails: bool = True
    scale_dtype: ScaleDtype = "float16"
    grid: GridName = "integer"

    def __post_init__(self) -> None:
        """Check the settings; a group size of -1 means whole rows."""
        if self.group_size == -1:
            object.__setattr__(self, "group_size", None)
        if not isinstance(self.bits, int) or self.bits not in BITS:
            raise FeatherweightError(
                f"{self.name} cannot store these bits", found=self.bits, expected=", ".join(map(str, BITS)), fix="use bits: 4"
            )
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise FeatherweightError(
                f"{self.name} cannot form these groups",
                found=self.group_size,
                expected="a positive number of inputs, or null for one scale per row",
                fix="use group_size: 128",
            )
        for setting, choices in (("scale_dtype", get_args(ScaleDtype)), ("grid", get_args(GridName))):
            if getattr(self, setting) not in choices:
                raise FeatherweightError(
                    f"{self.name} has no such {setting}", found=getattr(self, setting), expected=", ".join(choices),
                    fix=f"leave {setting} out",
                )  # fmt: skip
        check_grid(self.name, self.grid, vars(self))
        self.grid_over()

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what the grid settles, see `grid_settings`."""
        return completed(cls, settings)

    def grid_over(self, weight: Tensor | None = None) -> UniformGrid | FloatingGrid:
        """The grid of these settings; with the tensor scale of `weight`, of any shape, where there is one."""
        grid = make_grid(self.grid, self.bits, self.symmetric, self.fit, self.scale_dtype)
        return grid if weight is None or isinstance(grid, UniformGrid) else grid.over(weight)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """An `Integer` or `Floating` of the same shape, whatever the checkpoint's dtype; beneath the mask that `current` has."""
        rows, columns = current["shape"]
        self.check_groups((rows, columns))
        grid, shape = self.grid_over(), (rows, columns)
        if isinstance(grid, FloatingGrid):
            values = Floating.describe(shape, grid, self.group_size, self.indexed())
        else:
            values = Integer.describe(shape, self.bits, self.group_size, self.symmetric, grid.scale_dtype, self.indexed())
        return Masked.describe_like(current, values) if current["kind"] == "masked" else values

    def indexed(self) -> bool:
        """Whether every input's group is stored."""
        return False

    def check_groups(self, shape: tuple[int, int], name: str = "") -> None:
        """Refuse a group size that does not divide the inputs where tails are not wanted.

        Raises:
            FeatherweightError: it names the linear, both sizes and the ways out.
        """
        if self.tails or self.group_size is None or shape[1] % self.group_size == 0:
            return
        fitting = [size for size in (256, 128, 96, 64, 48, 32, 16) if shape[1] % size == 0 and size <= self.group_size]
        smaller = f"use group_size: {fitting[0]}, " if fitting else ""
        raise FeatherweightError(
            f"groups do not fit {name or 'this linear'}",
            found=f"{shape[1]} inputs, group_size {self.group_size}, remainder {shape[1] % self.group_size}",
            expected="a group size that divides the inputs, since tails: false",
            fix=f"{smaller}tails: true for a smaller last group, or group_size: null for one scale per row",
        )

    def masked_like(self, current: PackedWeight, packed: PackedWeight) -> PackedWeight:
        """`packed` beneath the mask of `current`, where it has one."""
        if not isinstance(current, Masked):
            return packed
        described = Masked.describe_like(current.description(), packed.description())
        return Masked.of(packed, current.support, described)

    def pack(
        self, solved: Solved, rows: slice, grid: UniformGrid | FloatingGrid, group_index: Tensor | None = None
    ) -> PackedWeight:
        """The stored form of some rows of a solution on `grid`."""
        codes, scales = solved.codes[rows], solved.scales[rows]
        if isinstance(grid, FloatingGrid):
            return Floating.from_codes(codes, scales, grid, self.group_size, group_index)
        zeros = None if self.symmetric else solved.zeros[rows]
        return Integer.from_codes(codes, scales.to(grid.scale_dtype), zeros, self.bits, self.group_size, group_index)
