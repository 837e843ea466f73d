"""A weight stored as integer codes whose scales and zeros are integer codes too (SpQR's dense part)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.two_level import Quantized, TwoLevelGrid, decode_second_level
from featherweight.grids.uniform import decode_uniform
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.packed.base import Layout, PackedWeight
from featherweight.packed.cuts import as_indices, whole_groups
from featherweight.packed.sparse_rows import read_positions

#: What of a grid is needed to decode; not how it was fitted.
_GRID = tuple(field.name for field in fields(TwoLevelGrid) if field.name not in ("fit_by", "zero_symmetric"))


@dataclass(frozen=True, eq=False)
class TwoLevel(PackedWeight):
    """`w_ij = s_ig (q_ij − z_ig)`, `s_ig = s₂ (c_ig − z₂)` with one `(s₂, z₂)` per group and 16 rows; `z_ig` likewise.

    Values come out bit for bit as the solver's grid decoded them. Inputs stay in their own order; where groups were formed
    along the walk, `group_index` says which group each input belongs to. That is smaller than the permutation (8 bits an
    input up to 256 groups), and sorting it gives a permutation that makes groups consecutive.

    Attributes:
        inputs: in features; codes are padded to whole bytes, so the tensors do not tell.
        group_size: inputs that share a scale; the last group may be smaller.
        grid: bits and second level.
        parts: the stored tensors, see `layout`.
    """

    kind: ClassVar[str] = "two_level"

    inputs: int
    group_size: int
    grid: TwoLevelGrid
    parts: Mapping[str, Tensor]

    @staticmethod
    def describe(
        shape: tuple[int, int], group_size: int, grid: TwoLevelGrid, group_index: bool = False, groups: int | None = None
    ) -> dict[str, Any]:
        """Description of an `[out, in]` weight so stored; `groups` is `⌈in / group_size⌉` unless an indexed cut kept more."""
        count = -(-shape[1] // group_size) if groups is None else groups
        stored = {"kind": "two_level", "shape": list(shape), "group_size": group_size, "groups": count}
        return {**stored, "group_index": group_index, **{name: getattr(grid, name) for name in _GRID}}

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Quantized,
        zeros: Quantized | None,
        grid: TwoLevelGrid,
        group_size: int,
        group_index: Tensor | None = None,
    ) -> TwoLevel:
        """Pack what a solver found.

        Args:
            codes: `[out, in]` uint8.
            scales, zeros: `[out, groups]`; zeros are None on a symmetric grid.
            grid: that fitted them.
            group_size: inputs that share a scale.
            group_index: group of every input, `[in]`, where groups are not consecutive.
        """
        parts = {"codes": pack(codes, grid.bits)}
        bits = {"scale": grid.scale_bits, "zero": grid.bits if grid.integer_zeros else grid.zero_bits}
        for name, numbers in (("scale", scales), ("zero", zeros)):
            if numbers is None:
                continue
            if numbers.codes is None:
                parts[f"{name}s"] = numbers.values.to(torch.float16)
                continue
            width = bits[name]
            assert width is not None
            parts[f"{name}_codes"] = pack(numbers.codes, width)
            if numbers.grids is not None:
                parts[f"{name}_grids"] = numbers.grids.contiguous()
        if group_index is not None:
            parts["group_index"] = group_index.to(index_dtype(scales.values.shape[1]))
        return cls(codes.shape[1], group_size, grid, parts)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (self.parts["codes"].shape[0], self.inputs)

    @property
    def groups(self) -> int:
        """Scales per row."""
        return self.parts["scale_grids" if self.grid.scale_bits is not None else "scales"].shape[1]

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe(self.shape, self.group_size, self.grid, "group_index" in self.parts, self.groups)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`codes`; `scale_codes` and `scale_grids`, or `scales`; the same of zeros, if any; `group_index`, if any.

        Codes are uint8 bytes of packed rows, `…_grids` `[⌈out / second_group_size⌉, groups, 2]` float16.
        """
        grid, (rows, columns), groups = _grid_of(description), description["shape"], description["groups"]
        layout: Layout = {"codes": ((rows, packed_width(columns, grid.bits)), torch.uint8)}
        second = ((-(-rows // grid.second_group_size), groups, 2), torch.float16)
        for name, bits in (("scale", grid.scale_bits), ("zero", grid.zero_bits)):
            if name == "zero" and grid.symmetric:
                continue
            if name == "zero" and grid.integer_zeros:
                layout["zero_codes"] = ((rows, packed_width(groups, grid.bits)), torch.uint8)
            elif bits is None:
                layout[f"{name}s"] = ((rows, groups), torch.float16)
            else:
                layout[f"{name}_codes"] = ((rows, packed_width(groups, bits)), torch.uint8)
                layout[f"{name}_grids"] = second
        if description["group_index"]:
            layout["group_index"] = ((columns,), index_dtype(groups))
        return layout

    def tensors(self) -> dict[str, Tensor]:
        """As `layout`."""
        return dict(self.parts)

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TwoLevel:
        """The weight of these stored tensors."""
        return cls(description["shape"][1], description["group_size"], _grid_of(description), dict(tensors))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
        codes = unpack(self.parts["codes"], self.grid.bits, self.inputs).to(torch.float32)
        scale, index = self._numbers("scale", self.grid.scale_bits), self.index()
        if self.grid.symmetric:
            return decode_uniform(codes, scale[:, index], (self.grid.largest_code + 1) / 2).to(dtype)
        return decode_uniform(codes, scale[:, index], self._numbers("zero", self.grid.zero_bits)[:, index]).to(dtype)

    def index(self) -> Tensor:
        """Group of every input, `[in]` int64."""
        stored = self.parts.get("group_index")
        if stored is not None:
            return read_positions(stored)
        return torch.arange(self.inputs, device=self.parts["codes"].device).div(self.group_size, rounding_mode="floor")

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> TwoLevel:
        """Outputs in whole second groups; of inputs whole groups, or any at all with a `group_index`.

        Raises:
            FeatherweightError: a cut through a group; it names the legal cuts.
        """
        parts, device = dict(self.parts), self.parts["codes"].device
        if outputs is not None:
            rows = as_indices(outputs, self.shape[0], device)
            blocks = whole_groups(rows, self.grid.second_group_size, self.shape[0])
            for name in parts.keys() - {"group_index"}:
                parts[name] = parts[name][blocks if name.endswith("_grids") else rows]
        if inputs is None:
            return TwoLevel(self.inputs, self.group_size, self.grid, parts)
        columns = as_indices(inputs, self.inputs, device)
        parts["codes"] = pack(unpack(parts["codes"], self.grid.bits, self.inputs)[:, columns], self.grid.bits)
        if "group_index" in parts:
            parts["group_index"] = parts["group_index"][columns]
            return TwoLevel(len(columns), self.group_size, self.grid, parts)
        kept = whole_groups(columns, self.group_size, self.inputs)
        zero_bits = self.grid.bits if self.grid.integer_zeros else self.grid.zero_bits
        for name, bits in (("scale", self.grid.scale_bits), ("zero", zero_bits)):
            for part in {f"{name}s", f"{name}_grids"} & parts.keys():
                parts[part] = parts[part][:, kept]
            if f"{name}_codes" in parts and bits is not None:
                parts[f"{name}_codes"] = pack(unpack(parts[f"{name}_codes"], bits, self.groups)[:, kept], bits)
        return TwoLevel(len(columns), self.group_size, self.grid, parts)

    def _numbers(self, name: str, bits: int | None) -> Tensor:
        """Scales or zeros, `[out, groups]` float32."""
        if f"{name}s" in self.parts:
            return self.parts[f"{name}s"].to(torch.float32)
        stored = self.parts[f"{name}_codes"]
        if f"{name}_grids" not in self.parts:
            return unpack(stored, self.grid.bits, self.groups).to(torch.float32)
        assert bits is not None
        return decode_second_level(unpack(stored, bits, self.groups), self.parts[f"{name}_grids"], self.grid.second_group_size)


def index_dtype(groups: int) -> torch.dtype:
    """The smallest dtype that tells so many groups apart."""
    if groups <= 2**8:
        return torch.uint8
    return torch.int16 if groups <= 2**16 else torch.int32


def _grid_of(description: Mapping[str, Any]) -> TwoLevelGrid:
    return TwoLevelGrid(**{name: description[name] for name in _GRID})
