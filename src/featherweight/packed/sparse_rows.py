"""A weight stored as its few entries that are not 0, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Layout, PackedWeight
from featherweight.packed.cuts import as_indices

#: Positions up to this many are kept in 16 bits, read as unsigned.
SHORT = 2**16


@dataclass(frozen=True, eq=False)
class SparseRows(PackedWeight):
    """Compressed sparse rows: entries `offsets[i] … offsets[i + 1]` lie in row `i`, each a column and a value.

    An entry may be 0; it is stored like any other. Takes `32 (out + 1) + 32 · entries` bits up to 65536 inputs.

    Attributes:
        inputs: in features.
        offsets: `[out + 1]` int32.
        columns: `[entries]` int16 read as unsigned; int32 beyond 65536 inputs.
        values: `[entries]` float16.
    """

    kind: ClassVar[str] = "sparse_rows"

    inputs: int
    offsets: Tensor
    columns: Tensor
    values: Tensor

    @staticmethod
    def describe(shape: tuple[int, int], entries: int) -> dict[str, Any]:
        """Description of an `[out, in]` weight with so many stored entries."""
        return {"kind": "sparse_rows", "shape": list(shape), "entries": entries}

    @classmethod
    def from_dense(cls, values: Tensor, mask: Tensor) -> SparseRows:
        """The entries of `values [out, in]` where `mask` is true; refuses what float16 cannot hold.

        Raises:
            FeatherweightError: an entry that is not finite in float16.
        """
        rows, columns = mask.nonzero(as_tuple=True)
        entries = values[rows, columns].to(torch.float16)
        if not bool(torch.isfinite(entries).all()):
            raise FeatherweightError(
                "an entry does not fit float16", found=float(values[mask].abs().max()), expected="magnitudes below 65504"
            )
        counts = mask.sum(1).cumsum(0)
        offsets = torch.nn.functional.pad(counts, (1, 0)).to(torch.int32)
        return cls(mask.shape[1], offsets, columns.to(position_dtype(mask.shape[1])), entries)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (len(self.offsets) - 1, self.inputs)

    def description(self) -> dict[str, Any]:
        """`kind`, `shape`, `entries`."""
        return self.describe(self.shape, len(self.values))

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`offsets`, `columns`, `values`."""
        (rows, columns), entries = description["shape"], description["entries"]
        return {
            "offsets": ((rows + 1,), torch.int32),
            "columns": ((entries,), position_dtype(columns)),
            "values": ((entries,), torch.float16),
        }

    def tensors(self) -> dict[str, Tensor]:
        """As `layout`."""
        return {"offsets": self.offsets, "columns": self.columns, "values": self.values}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SparseRows:
        """The weight of these stored tensors."""
        return cls(description["shape"][1], tensors["offsets"], tensors["columns"], tensors["values"])

    def positions(self) -> tuple[Tensor, Tensor]:
        """Row and column of every entry, `[entries]` int64 each."""
        counts = self.offsets.long().diff()
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self.values))
        return rows, read_positions(self.columns)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`, 0 where nothing is stored."""
        dense = torch.zeros(self.shape, dtype=dtype, device=self.values.device)
        if self.values.device.type == "meta":
            return dense
        return dense.index_put_(self.positions(), self.values.to(dtype))

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ` over the entries alone, float32 sums, `[..., out]` in the dtype of `x`."""
        flat = x.reshape(-1, self.inputs).to(torch.float32)
        indices = torch.stack(self.positions())
        matrix = torch.sparse_coo_tensor(indices, self.values.to(torch.float32), self.shape, check_invariants=True)
        return torch.sparse.mm(matrix, flat.T).T.to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> SparseRows:
        """Any outputs and inputs."""
        dense, mask = self.dequantize(), torch.zeros(self.shape, dtype=torch.bool, device=self.values.device)
        mask[self.positions()] = True
        rows = as_indices(slice(None) if outputs is None else outputs, self.shape[0], mask.device)
        columns = as_indices(slice(None) if inputs is None else inputs, self.inputs, mask.device)
        return SparseRows.from_dense(dense[rows][:, columns], mask[rows][:, columns])


def position_dtype(count: int) -> torch.dtype:
    """The dtype that positions below `count` are stored in."""
    return torch.int16 if count <= SHORT else torch.int32


def read_positions(stored: Tensor) -> Tensor:
    """Stored positions as int64."""
    return stored.long() & (SHORT - 1) if stored.dtype == torch.int16 else stored.long()
