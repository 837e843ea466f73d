"""A weight stored as integer codes on a uniform grid, packed without gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.uniform import decode_uniform
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.kernels.registry import choose
from featherweight.packed.base import Layout
from featherweight.packed.dtypes import dtype_from, dtype_name
from featherweight.packed.grouped import Grouped, group_count


@dataclass(frozen=True, eq=False)
class Integer(Grouped):
    """`w_ij = s_ig (q_ij − z_ig)`, where `g` is the group of input `j`; see `Grouped`.

    Values come out bit for bit as the solver's grid decoded them: float32 arithmetic on the stored scales.

    Attributes:
        zeros: `[out, ⌈groups · bits / 8⌉]` uint8, packed; None on a symmetric grid, whose zero point is `2^(bits−1)`.
    """

    kind: ClassVar[str] = "integer"

    zeros: Tensor | None = None

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
        return cls(codes.shape[1], bits, group_size, pack(codes, bits), scales.contiguous(), index, packed_zeros)

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is fixed and not stored."""
        return self.zeros is None

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
            tensors.get("group_index"),
            tensors.get("zeros"),
        )

    def unpacked_zeros(self) -> Tensor:
        """Zero points, `[out, groups]` uint8; one for all on a symmetric grid."""
        if self.zeros is None:  # made there: no copy, no wait
            return torch.full((1, 1), 2 ** (self.bits - 1), dtype=torch.uint8, device=self.codes.device)
        return unpack(self.zeros, self.bits, self.groups)

    def zero_codes(self) -> Tensor:
        """The zero point of every weight, or of every row with one scale each."""
        zeros = self.unpacked_zeros()
        if zeros.shape[1] == 1:
            return zeros
        if self.group_index is not None:
            return zeros[:, self.group_index.long()]
        return zeros if self.group_size is None else zeros.repeat_interleave(self.group_size, 1)[:, : self.inputs]

    def with_codes(self, codes: Tensor) -> Integer:
        """The same values' parameters with other codes, left at 8 bits each: faster to decode than packed ones."""
        zeros = self.unpacked_zeros().expand(self.scales.shape)
        return replace(self, bits=8, codes=codes, zeros=zeros)

    def _of_rows(self, rows: slice | Tensor) -> Integer:
        zeros = None if self.zeros is None else self.zeros[rows].contiguous()
        return replace(self, codes=self.codes[rows].contiguous(), scales=self.scales[rows].contiguous(), zeros=zeros)

    def _of_groups(self, kept: Tensor) -> Integer:
        zeros = None if self.zeros is None else pack(self.unpacked_zeros()[:, kept], self.bits)
        return replace(self, scales=self.scales[:, kept].contiguous(), zeros=zeros)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`, the same bits by every kernel."""
        if not _is_plain(self.codes):
            return super().dequantize(dtype)
        return choose("integer_values", self.description(), self.codes.device)(self, dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ` by the best kernel; through the dense values where a gradient is wanted."""
        if not _is_plain(x) or (x.requires_grad and torch.is_grad_enabled()):
            return super().matmul(x)
        return choose("integer_matmul", self.description(), x.device)(x, self)

    def decoded(self) -> Tensor:
        """The values by torch's operations alone, `[out, in]` float32."""
        return self._values()

    def _values(self) -> Tensor:
        codes = unpack(self.codes, self.bits, self.inputs).to(torch.float32)
        scale, zero = self.scales.to(torch.float32), self.unpacked_zeros().to(torch.float32)
        if self.group_index is not None:
            index = self.group_index.long()
            return decode_uniform(codes, scale[:, index], zero if self.symmetric else zero[:, index])
        return decode_uniform(self._by_group(codes), scale[:, :, None], zero[:, :, None]).flatten(1)[:, : self.inputs]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a kernel may read its memory: not a tensor that only records what is done to it."""
    return type(tensor) in (Tensor, torch.nn.Parameter)
