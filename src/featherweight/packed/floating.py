"""A weight stored as codes of a narrow floating-point format (FP8, FP4), with scales in groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.floating import FORMATS, FloatingGrid
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.packed.base import Layout
from featherweight.packed.dtypes import dtype_from, dtype_name
from featherweight.packed.grouped import Grouped, group_count


@dataclass(frozen=True, eq=False)
class Floating(Grouped):
    """`w_ij = s_ig f(q_ij)`, `f` the number whose bit pattern in the `element` format is `q_ij`; see `Grouped`.

    NVFP4 is "e2m1" in groups of 16 with float8_e4m3fn scales and one float32 scale of the tensor, MXFP4 "e2m1" in groups of 32
    with float8_e8m0fnu scales. Values come out bit for bit as the solver's grid decoded them.

    Attributes:
        element: the format, "e4m3" or "e2m1".
        tensor_scale: factor on all scales, `[1]` float32, beside float8_e4m3fn scales; None otherwise.
    """

    kind: ClassVar[str] = "floating"

    element: str = "e4m3"
    tensor_scale: Tensor | None = None

    @staticmethod
    def describe(
        shape: tuple[int, int],
        grid: FloatingGrid,
        group_size: int | None,
        group_index: bool = False,
    ) -> dict[str, Any]:
        """Description of an `[out, in]` weight on `grid`; how the grid is fitted does not matter."""
        return _described(shape, grid.element, group_size, grid.scale_dtype, group_index, group_count(shape[1], group_size))

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, grid: FloatingGrid, group_size: int | None, group_index: Tensor | None = None
    ) -> Floating:
        """Pack what a solver found.

        Args:
            codes: `[out, in]` uint8.
            scales: fitted by `grid`, `[out, groups]` float32.
            grid: its format, scale dtype and tensor scale.
            group_size: inputs that share a scale; None for whole rows.
            group_index: group of every input, `[in]`, where groups are not consecutive.
        """
        bits, index = grid.format.bits, None if group_index is None else group_index.to(torch.int16)
        whole = None
        if grid.scale_dtype == torch.float8_e4m3fn:
            whole = torch.full((1,), grid.tensor_scale, dtype=torch.float32, device=codes.device)
        scales = grid.stored_scale(scales).contiguous()
        return cls(codes.shape[1], bits, group_size, pack(codes, bits), scales, index, grid.element, whole)

    def description(self) -> dict[str, Any]:
        """As `describe` writes it; `groups` is larger than `⌈in / group_size⌉` after some cuts with an index."""
        indexed = self.group_index is not None
        return _described(self.shape, self.element, self.group_size, self.scales.dtype, indexed, self.groups)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`codes`, `scales`, then `tensor_scale` and `group_index` where the description has them."""
        rows, columns = description["shape"]
        scale_dtype = dtype_from(description["scale_dtype"])
        layout: Layout = {
            "codes": ((rows, packed_width(columns, description["bits"])), torch.uint8),
            "scales": ((rows, description["groups"]), scale_dtype),
        }
        if scale_dtype == torch.float8_e4m3fn:
            layout["tensor_scale"] = ((1,), torch.float32)
        if description["group_index"]:
            layout["group_index"] = ((columns,), torch.int16)
        return layout

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors that are there."""
        named = {"codes": self.codes, "scales": self.scales}
        more = {"tensor_scale": self.tensor_scale, "group_index": self.group_index}
        return {**named, **{name: tensor for name, tensor in more.items() if tensor is not None}}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Floating:
        """The weight of these stored tensors."""
        return cls(
            description["shape"][1], description["bits"], description["group_size"], tensors["codes"], tensors["scales"],
            tensors.get("group_index"), description["element"], tensors.get("tensor_scale"),
        )  # fmt: skip

    def zero_codes(self) -> Tensor:
        """0."""
        return torch.zeros((), dtype=torch.uint8, device=self.codes.device)

    def with_codes(self, codes: Tensor) -> Floating:
        """See `Grouped.with_codes`."""
        return replace(self, codes=pack(codes, self.bits))

    def _of_rows(self, rows: slice | Tensor) -> Floating:
        return replace(self, codes=self.codes[rows].contiguous(), scales=self.scales[rows].contiguous())

    def _of_groups(self, kept: Tensor) -> Floating:
        return replace(self, scales=self.scales[:, kept].contiguous())

    def _values(self) -> Tensor:
        numbers = FORMATS[self.element].decode(unpack(self.codes, self.bits, self.inputs))
        scale = self.scales.to(torch.float32)
        scale = scale if self.tensor_scale is None else scale * self.tensor_scale
        if self.group_index is not None:
            return numbers * scale[:, self.group_index.long()]
        return (self._by_group(numbers) * scale[:, :, None]).flatten(1)[:, : self.inputs]


def _described(
    shape: tuple[int, int], element: str, group_size: int | None, scale_dtype: torch.dtype, group_index: bool, groups: int
) -> dict[str, Any]:
    return {
        "kind": "floating",
        "shape": list(shape),
        "element": element,
        "bits": FORMATS[element].bits,
        "group_size": group_size,
        "groups": groups,
        "scale_dtype": dtype_name(scale_dtype),
        "group_index": group_index,
    }
