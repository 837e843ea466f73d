"""A weight stored as its few entries that are not 0, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Described, Layout, layout_bytes
from featherweight.packed.cuts import as_indices

Form = Literal["rows", "tiles", "list"]

#: Positions up to this many are kept in 16 bits, read as unsigned.
SHORT = 2**16

#: Inputs of a tile: both the number of its entries and their places fit 8 bits.
TILE = 255

#: By `value_bits`; every float8_e5m2 number is a float16 number.
VALUE_DTYPES = {16: torch.float16, 8: torch.float8_e5m2}


@dataclass(frozen=True, eq=False)
class SparseRows(Described):
    """Entries in row-major order, each a position and a value. An entry may be 0; it is stored like any other.

    Positions take the smallest of three forms, with `N` entries in an `[out, in]` weight:

    - "rows": int32 `offsets [out + 1]`, entries `offsets[i] … offsets[i + 1]` lie in row `i`, and 16-bit `columns [N]`;
    - "tiles": uint8 `counts [out, ⌈in / 255⌉]` of the entries in every 255 inputs of a row, and uint8 `places [N]` therein;
    - "list": 16-bit `rows [N]` and `columns [N]`, for very few entries.

    16-bit positions are read as unsigned, and are int32 where there are more than 65536.

    Attributes:
        described: as `describe` writes it.
        stored: tensors as `layout` names them.
    """

    kind: ClassVar[str] = "sparse_rows"

    @staticmethod
    def describe(shape: tuple[int, int], entries: int, value_bits: int = 16) -> dict[str, Any]:
        """Description of an `[out, in]` weight with so many stored entries, each a float of `value_bits`, 16 or 8."""
        described = {"kind": "sparse_rows", "shape": list(shape), "entries": entries, "value_bits": value_bits}
        forms: tuple[Form, ...] = ("rows", "tiles", "list")
        sizes = {form: layout_bytes(_layout({**described, "form": form})) for form in forms}
        return {**described, "form": min(sizes, key=lambda form: sizes[form])}

    @classmethod
    def from_dense(cls, values: Tensor, mask: Tensor) -> SparseRows:
        """The entries of `values [out, in]` where `mask` is true, stored as float8_e5m2 if given so, else as float16.

        Raises:
            FeatherweightError: an entry that is not finite in that dtype.
        """
        rows, columns = mask.nonzero(as_tuple=True)
        bits = 8 if values.dtype == VALUE_DTYPES[8] else 16
        entries = values[rows, columns].to(VALUE_DTYPES[bits])
        if not bool(torch.isfinite(entries.to(torch.float32)).all()):
            raise FeatherweightError(
                "an entry does not fit float16",
                found=float(values.to(torch.float32)[mask].abs().max()),
                expected="magnitudes below 65504",
            )
        return cls.from_entries((mask.shape[0], mask.shape[1]), rows, columns, entries)

    @classmethod
    def from_entries(cls, shape: tuple[int, int], rows: Tensor, columns: Tensor, entries: Tensor) -> SparseRows:
        """Entries in row-major order, each at its row and column, `[entries]` int64; values float16 or float8_e5m2."""
        out, inputs = shape
        described = cls.describe(shape, len(entries), 8 if entries.dtype == VALUE_DTYPES[8] else 16)
        stored: dict[str, Tensor] = {"values": entries}
        if described["form"] == "rows":
            counts = torch.bincount(rows, minlength=out)
            stored["offsets"] = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        elif described["form"] == "tiles":
            across = -(-inputs // TILE)
            counts = torch.bincount(rows * across + columns // TILE, minlength=out * across)
            stored |= {"counts": counts.view(out, across).to(torch.uint8), "places": (columns % TILE).to(torch.uint8)}
        else:
            stored["rows"] = rows.to(position_dtype(out))
        if described["form"] != "tiles":
            stored["columns"] = columns.to(position_dtype(inputs))
        return cls(described, stored)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`values`, and positions as the form has them."""
        return _layout(description)

    @property
    def values(self) -> Tensor:
        """Of every entry, `[entries]` float16."""
        return self.stored["values"].to(torch.float16)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Row and column of every entry, `[entries]` int64 each."""
        entries = self.described["entries"]
        if self.described["form"] == "list":
            return read_positions(self.stored["rows"]), read_positions(self.stored["columns"])
        if self.described["form"] == "rows":
            return _repeated(self.stored["offsets"].long().diff(), entries), read_positions(self.stored["columns"])
        counts = self.stored["counts"]
        tiles = _repeated(counts.flatten().long(), entries)
        across = counts.shape[1]
        return tiles.div(across, rounding_mode="floor"), tiles % across * TILE + self.stored["places"].long()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`, 0 where nothing is stored."""
        dense = torch.zeros(self.shape, dtype=dtype, device=self.stored["values"].device)
        if dense.device.type == "meta":
            return dense
        return dense.index_put_(self.positions(), self.values.to(dtype))

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ` over the entries alone, float32 sums, `[..., out]` in the dtype of `x`."""
        flat = x.reshape(-1, self.shape[1]).to(torch.float32)
        indices = torch.stack(self.positions())
        matrix = torch.sparse_coo_tensor(indices, self.values.to(torch.float32), self.shape, check_invariants=True)
        return torch.sparse.mm(matrix, flat.T).T.to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> SparseRows:
        """Any outputs and inputs."""
        dense = torch.zeros(self.shape, dtype=torch.float16, device=self.stored["values"].device)
        mask = torch.zeros_like(dense, dtype=torch.bool)
        dense[self.positions()], mask[self.positions()] = self.values, True
        rows = as_indices(slice(None) if outputs is None else outputs, self.shape[0], mask.device)
        columns = as_indices(slice(None) if inputs is None else inputs, self.shape[1], mask.device)
        part = dense[rows][:, columns].to(self.stored["values"].dtype)
        return SparseRows.from_dense(part, mask[rows][:, columns])


def position_dtype(count: int) -> torch.dtype:
    """The dtype that positions below `count` are stored in."""
    return torch.int16 if count <= SHORT else torch.int32


def read_positions(stored: Tensor) -> Tensor:
    """Stored positions as int64."""
    return stored.long() & (SHORT - 1) if stored.dtype == torch.int16 else stored.long()


def _repeated(counts: Tensor, total: int) -> Tensor:
    """0, 1, … each as often as `counts` says, `[total]` int64."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)


def _layout(description: Mapping[str, Any]) -> Layout:
    (rows, inputs), entries = description["shape"], description["entries"]
    values: Layout = {"values": ((entries,), VALUE_DTYPES[description["value_bits"]])}
    if description["form"] == "tiles":
        return {**values, "counts": ((rows, -(-inputs // TILE)), torch.uint8), "places": ((entries,), torch.uint8)}
    columns: Layout = {**values, "columns": ((entries,), position_dtype(inputs))}
    if description["form"] == "rows":
        return {**columns, "offsets": ((rows + 1,), torch.int32)}
    return {**columns, "rows": ((entries,), position_dtype(rows))}
