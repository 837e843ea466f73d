"""A weight stored as codes on a normal-float grid, packed without gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.normal import decode_normal
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.packed.base import Described, Layout
from featherweight.packed.cuts import as_indices, whole_groups
from featherweight.packed.dtypes import dtype_from, dtype_name
from featherweight.packed.grouped import group_count


@dataclass(frozen=True, eq=False)
class NormalFloat(Described):
    """`w_ij = s_ig · level[q_ij]`, where `g` is the group of input `j` and levels are `normal_levels(bits)`.

    Consecutive `group_size` inputs share a scale, the last group may be smaller; without a group size a whole row.

    Attributes:
        described: as `describe` writes it.
        stored: `codes [out, ⌈in · bits / 8⌉]` uint8, `scales [out, groups]`.
    """

    kind: ClassVar[str] = "normal_float"

    @staticmethod
    def describe(shape: tuple[int, int], bits: int, group_size: int | None, scale_dtype: torch.dtype) -> dict[str, Any]:
        """Description of an `[out, in]` weight so stored."""
        settings = {"bits": bits, "group_size": group_size, "scale_dtype": dtype_name(scale_dtype)}
        return {"kind": "normal_float", "shape": list(shape), **settings}

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor, bits: int, group_size: int | None) -> NormalFloat:
        """Pack `codes [out, in]` uint8 and `scales [out, groups]` in the dtype that they are stored in."""
        described = cls.describe((codes.shape[0], codes.shape[1]), bits, group_size, scales.dtype)
        return cls(described, {"codes": pack(codes, bits), "scales": scales.contiguous()})

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`codes` and `scales`."""
        rows, columns = description["shape"]
        groups = group_count(columns, description["group_size"])
        return {
            "codes": ((rows, packed_width(columns, description["bits"])), torch.uint8),
            "scales": ((rows, groups), dtype_from(description["scale_dtype"])),
        }

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
        columns, bits = self.shape[1], self.described["bits"]
        size = self.described["group_size"] or columns
        scales = self.stored["scales"].to(torch.float32).repeat_interleave(size, 1)[:, :columns]
        return decode_normal(unpack(self.stored["codes"], bits, columns), scales, bits).to(dtype)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> NormalFloat:
        """Any outputs; of inputs whole groups, in any order, or any at all with one scale per row.

        Raises:
            FeatherweightError: a cut through a group; it names the legal cuts.
        """
        bits, size, columns = self.described["bits"], self.described["group_size"], self.shape[1]
        rows = slice(None) if outputs is None else outputs
        codes, scales = unpack(self.stored["codes"][rows], bits, columns), self.stored["scales"][rows]
        if inputs is not None:
            chosen = as_indices(inputs, columns, codes.device)
            codes = codes[:, chosen]
            scales = scales if size is None else scales[:, whole_groups(chosen, size, columns)]
        return NormalFloat.from_codes(codes.contiguous(), scales, bits, size)
