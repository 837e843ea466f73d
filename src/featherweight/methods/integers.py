"""What the methods that round to integers have in common: grid, groups, storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.methods.base import Method, Steps
from featherweight.packed.base import PackedWeight
from featherweight.packed.dtypes import dtype_from
from featherweight.packed.integer import Integer
from featherweight.packed.masked import Masked
from featherweight.solvers.result import Solved

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class IntegerMethod(Method):
    """Settings of an integer grid per group of inputs.

    Attributes:
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: consecutive inputs that share a scale; None (or -1) for whole rows.
        symmetric: fix the zero point in the middle, so that none is stored.
        fit: how a group's range is found: "minmax", "mse", "weighted" or "clipped".
        tails: whether the last group may be smaller where the group size does not divide the inputs.
        scale_dtype: "float16" or "bfloat16".

    Raises:
        FeatherweightError: a setting outside these.
    """

    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits, "group_size": 128},) for bits in (2, 3, 4, 6, 8)}

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    fit: Fit = "minmax"
    tails: bool = True
    scale_dtype: Literal["float16", "bfloat16"] = "float16"

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
        if self.scale_dtype not in ("float16", "bfloat16"):
            raise FeatherweightError(
                "scales cannot be stored so",
                found=self.scale_dtype,
                expected="float16, bfloat16",
                fix="use scale_dtype: float16",
            )
        self.grid()

    def grid(self) -> UniformGrid:
        """The grid of these settings."""
        return UniformGrid(self.bits, self.symmetric, self.fit, dtype_from(self.scale_dtype))

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """An `Integer` of the same shape, whatever the checkpoint's dtype; beneath the mask where `current` has one."""
        rows, columns = current["shape"]
        self.check_groups((rows, columns))
        values = Integer.describe(
            (rows, columns), self.bits, self.group_size, self.symmetric, dtype_from(self.scale_dtype), self.indexed()
        )
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

    def masked_like(self, current: PackedWeight, packed: Integer) -> PackedWeight:
        """`packed` beneath the mask of `current`, where it has one."""
        if not isinstance(current, Masked):
            return packed
        described = Masked.describe_like(current.description(), packed.description())
        return Masked.of(packed, current.support, described)

    def pack(self, solved: Solved, rows: slice, group_index: Tensor | None = None) -> Integer:
        """The stored form of some rows of a solution."""
        return Integer.from_codes(
            solved.codes[rows],
            solved.scales[rows].to(dtype_from(self.scale_dtype)),
            None if self.symmetric else solved.zeros[rows],
            self.bits,
            self.group_size,
            group_index,
        )
