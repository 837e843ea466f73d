"""A weight stored as integer codes on a uniform grid, packed without gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.uniform import decode_uniform
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.packed.base import Layout, PackedWeight
from featherweight.packed.cuts import as_indices, whole_groups
from featherweight.packed.dtypes import dtype_from, dtype_name


@dataclass(frozen=True, eq=False)
class Integer(PackedWeight):
    """`w_ij = s_ig (q_ij − z_ig)`, where `g` is the group of input `j`.

    Consecutive `group_size` inputs share a scale and a zero point, the last group may be smaller; without a group size
    a whole row shares them; with `group_index` input `j` belongs to group `group_index[j]` (groups formed in the order
    in which the solver walked). Values come out bit for bit as the solver's grid decoded them: float32 arithmetic on
    the stored scales.

    Attributes:
        inputs: in features; codes are padded to whole bytes, so the tensors do not tell.
        bits: of a code.
        group_size: inputs that share a scale; None for whole rows.
        codes: `[out, ⌈in · bits / 8⌉]` uint8.
        scales: `[out, groups]`.
        zeros: `[out, ⌈groups · bits / 8⌉]` uint8, packed; None on a symmetric grid, whose zero point is `2^(bits−1)`.
        group_index: group of every input, `[in]` int16, or None.
    """

    kind: ClassVar[str] = "integer"

    inputs: int
    bits: int
    group_size: int | None
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    group_index: Tensor | None = None

    @staticmethod
    def describe(
        shape: tuple[int, int],
        bits: int,
        group_size: int | None,
        symmetric: bool,
        scale_dtype: torch.dtype,
        group_index: bool = False,
        groups: int | None = None,
    ) -> dict[str, Any]:
        """Description of an `[out, in]` weight so stored; `groups` is `⌈in / group_size⌉` unless an indexed cut kept more."""
        return {
            "kind": "integer",
            "shape": list(shape),
            "bits": bits,
            "group_size": group_size,
            "groups": group_count(shape[1], group_size) if groups is None else groups,
            "symmetric": symmetric,
            "scale_dtype": dtype_name(scale_dtype),
            "group_index": group_index,
        }

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bits: int,
        group_size: int | None,
        group_index: Tensor | None = None,
    ) -> Integer:
        """Pack what a solver found.

        Args:
            codes: `[out, in]` uint8.
            scales: `[out, groups]`, in the dtype they are stored in.
            zeros: integer values `[out, groups]`; None on a symmetric grid.
            bits: of a code.
            group_size: inputs that share a scale; None for whole rows.
            group_index: group of every input, `[in]`, where groups are not consecutive.
        """
        packed_zeros = None if zeros is None else pack(zeros.to(torch.uint8), bits)
        index = None if group_index is None else group_index.to(torch.int16)
        return cls(codes.shape[1], bits, group_size, pack(codes, bits), scales.contiguous(), packed_zeros, index)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (self.codes.shape[0], self.inputs)

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is fixed and not stored."""
        return self.zeros is None

    @property
    def groups(self) -> int:
        """Scales per row."""
        return self.scales.shape[1]

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe(
            self.shape,
            self.bits,
            self.group_size,
            self.symmetric,
            self.scales.dtype,
            self.group_index is not None,
            self.groups,
        )

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`codes`, `scales`, then `zeros` and `group_index` where the description has them."""
        rows, columns = description["shape"]
        bits, groups = description["bits"], description["groups"]
        layout: Layout = {
            "codes": ((rows, packed_width(columns, bits)), torch.uint8),
            "scales": ((rows, groups), dtype_from(description["scale_dtype"])),
        }
        if not description["symmetric"]:
            layout["zeros"] = ((rows, packed_width(groups, bits)), torch.uint8)
        if description["group_index"]:
            layout["group_index"] = ((columns,), torch.int16)
        return layout

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors that are there."""
        named = {"codes": self.codes, "scales": self.scales, "zeros": self.zeros, "group_index": self.group_index}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Integer:
        """The weight of these stored tensors."""
        return cls(
            description["shape"][1],
            description["bits"],
            description["group_size"],
            tensors["codes"],
            tensors["scales"],
            tensors.get("zeros"),
            tensors.get("group_index"),
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
        return self._decode(self.codes, self.scales, self.zeros, dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of some rows, `[*indices.shape, in]`; no other row is decoded."""
        flat = indices.reshape(-1)
        zeros = None if self.zeros is None else self.zeros[flat]
        return self._decode(self.codes[flat], self.scales[flat], zeros, dtype).view(*indices.shape, self.inputs)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Integer:
        """Any outputs; of inputs whole groups, in any order, or any at all with one scale per row or a `group_index`.

        Raises:
            FeatherweightError: a cut through a group; it names the legal cuts.
        """
        rows = slice(None) if outputs is None else outputs
        codes, scales = self.codes[rows].contiguous(), self.scales[rows].contiguous()
        zeros = None if self.zeros is None else self.zeros[rows].contiguous()
        if inputs is None:
            return Integer(self.inputs, self.bits, self.group_size, codes, scales, zeros, self.group_index)
        columns = as_indices(inputs, self.inputs, codes.device)
        cut = pack(unpack(codes, self.bits, self.inputs)[:, columns], self.bits)
        if self.group_index is not None or self.group_size is None:
            index = None if self.group_index is None else self.group_index[columns]
            return Integer(len(columns), self.bits, self.group_size, cut, scales, zeros, index)
        kept = whole_groups(columns, self.group_size, self.inputs)
        if zeros is not None:
            zeros = pack(unpack(zeros, self.bits, self.groups)[:, kept], self.bits)
        return Integer(len(columns), self.bits, self.group_size, cut, scales[:, kept].contiguous(), zeros, None)

    def indexed(self) -> Integer:
        """The same with every input's group stored, so that `take` can cut any inputs; itself with one scale per row."""
        if self.group_index is not None or self.group_size is None:
            return self
        index = torch.arange(self.inputs, device=self.codes.device).div(self.group_size, rounding_mode="floor")
        return Integer(self.inputs, self.bits, self.group_size, self.codes, self.scales, self.zeros, index.to(torch.int16))

    def _decode(self, packed: Tensor, scales: Tensor, packed_zeros: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Values of `packed [rows, bytes]` with their `scales [rows, groups]` and packed zeros."""
        codes = unpack(packed, self.bits, self.inputs).to(torch.float32)
        scale = scales.to(torch.float32)
        middle = torch.full((), 2.0 ** (self.bits - 1), device=codes.device)  # made there: no copy, no wait
        zero = middle if packed_zeros is None else unpack(packed_zeros, self.bits, self.groups).to(torch.float32)
        if self.group_index is not None:
            index = self.group_index.long()
            return decode_uniform(codes, scale[:, index], zero[:, index] if zero.ndim else zero).to(dtype)
        size = self.inputs if self.group_size is None else self.group_size
        grouped = torch.nn.functional.pad(codes, (0, self.groups * size - self.inputs)).unflatten(1, (self.groups, size))
        values = decode_uniform(grouped, scale[:, :, None], zero[:, :, None] if zero.ndim else zero)
        return values.flatten(1)[:, : self.inputs].to(dtype)


def group_count(inputs: int, group_size: int | None) -> int:
    """Scales per row, `⌈in / group_size⌉`."""
    return 1 if group_size is None else -(-inputs // group_size)
