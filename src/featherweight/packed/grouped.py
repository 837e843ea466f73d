"""What storages of codes with a scale for each group of inputs have in common: cutting them, decoding them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, unpack
from featherweight.packed.base import PackedWeight
from featherweight.packed.cuts import as_indices, whole_groups


@dataclass(frozen=True, eq=False)
class Grouped(PackedWeight):
    """Consecutive `group_size` inputs share a scale, the last group may be smaller.

    Without a group size a whole row shares one; with `group_index` input `j` belongs to group `group_index[j]` (groups formed
    in the order in which the solver walked).

    Attributes:
        inputs: in features; codes are padded to whole bytes, so the tensors do not tell.
        bits: of a code.
        group_size: inputs that share a scale; None for whole rows.
        codes: `[out, ⌈in · bits / 8⌉]` uint8.
        scales: `[out, groups]`.
        group_index: group of every input, `[in]` int16, or None.
    """

    inputs: int
    bits: int
    group_size: int | None
    codes: Tensor
    scales: Tensor
    group_index: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (self.codes.shape[0], self.inputs)

    @property
    def groups(self) -> int:
        """Scales per row."""
        return self.scales.shape[1]

    @abstractmethod
    def zero_codes(self) -> Tensor:
        """The code that stands for 0, uint8, broadcasting to `[out, in]`."""

    @abstractmethod
    def with_codes(self, codes: Tensor) -> Self:
        """Another weight with the same scales; `codes` `[out, in]` uint8, not packed."""

    @abstractmethod
    def _of_rows(self, rows: slice | Tensor) -> Self:
        """The weight of some rows."""

    @abstractmethod
    def _of_groups(self, kept: Tensor) -> Self:
        """The weight with the parameters of some groups, in this order."""

    @abstractmethod
    def _values(self) -> Tensor:
        """All values, `[out, in]` float32."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
        return self._values().to(dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of some rows, `[*indices.shape, in]`; no other row is decoded."""
        return self._of_rows(indices.reshape(-1)).dequantize(dtype).view(*indices.shape, self.inputs)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Self:
        """Any outputs; of inputs whole groups, in any order, or any at all with one scale per row or a `group_index`.

        Raises:
            FeatherweightError: a cut through a group; it names the legal cuts.
        """
        part = self._of_rows(slice(None) if outputs is None else outputs)
        if inputs is None:
            return part
        columns = as_indices(inputs, self.inputs, self.codes.device)
        cut = pack(unpack(part.codes, self.bits, self.inputs)[:, columns], self.bits)
        if self.group_index is not None:
            return replace(part, inputs=len(columns), codes=cut, group_index=self.group_index[columns])
        if self.group_size is None:
            return replace(part, inputs=len(columns), codes=cut)
        kept = whole_groups(columns, self.group_size, self.inputs)
        return replace(part._of_groups(kept), inputs=len(columns), codes=cut)

    def indexed(self) -> Self:
        """The same with every input's group stored, so that `take` can cut any inputs; itself with one scale per row."""
        if self.group_index is not None or self.group_size is None:
            return self
        index = torch.arange(self.inputs, device=self.codes.device).div(self.group_size, rounding_mode="floor")
        return replace(self, group_index=index.to(torch.int16))

    def _by_group(self, levels: Tensor) -> Tensor:
        """`levels [out, in]` such that parameters `[out, groups, 1]` broadcast, `[out, groups, width]`; without an index."""
        size = self.inputs if self.group_size is None else self.group_size
        padding = self.groups * size - self.inputs
        return torch.nn.functional.pad(levels, (0, padding)).unflatten(1, (self.groups, size))


def group_count(inputs: int, group_size: int | None) -> int:
    """Scales per row, `⌈in / group_size⌉`."""
    return 1 if group_size is None else -(-inputs // group_size)
