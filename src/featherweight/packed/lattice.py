"""A weight stored as codes of an E8 lattice codebook, eight inputs to a code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.e8 import E8Grid
from featherweight.grids.e8_codebook import SIZE
from featherweight.packed.base import Described, Layout
from featherweight.packed.cuts import as_indices, whole_groups

#: Bits a weight to the dtype of the second codebook's codes.
RESIDUAL_DTYPES = {2: None, 3: torch.uint8, 4: torch.int16}


class Lattice(Described):
    """`w = s · v`, `v` the codeword of eight consecutive inputs (`E8Grid`); exactly 2, 3 or 4 bits a weight, and one scale.

    Inputs are filled up to whole vectors. Codes of 16 bits are held as int16; the codebooks are derived, not stored.
    Values come out bit for bit as the solver's grid decoded them.

    Attributes:
        described: as `describe` writes it.
        stored: `codes [out, ⌈in / 8⌉]` int16; `residual` likewise, uint8 at 3 bits, int16 at 4; `scale [1]` float32.
    """

    kind: ClassVar[str] = "lattice"

    @staticmethod
    def describe(shape: tuple[int, int], bits: int) -> dict[str, Any]:
        """Description of an `[out, in]` weight so stored."""
        return {"kind": "lattice", "shape": list(shape), "bits": bits}

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor, inputs: int, bits: int) -> Lattice:
        """Store what a solver found.

        Args:
            codes: of `E8Grid(bits)`, `[out, ⌈in / 8⌉]` int32.
            scale: one number, float32.
            inputs: in features; those that the last vector has beyond them are not read.
            bits: a weight: 2, 3 or 4.
        """
        stored = {"codes": (codes & 0xFFFF).to(torch.int16).contiguous()}
        second = RESIDUAL_DTYPES[bits]
        if second is not None:
            stored["residual"] = (codes >> 16 & (0xFFFF if second == torch.int16 else 0xFF)).to(second).contiguous()
        return cls(cls.describe((len(codes), inputs), bits), stored | {"scale": scale.reshape(1).to(torch.float32)})

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """`codes`, `residual` above 2 bits, `scale`."""
        rows, inputs = description["shape"]
        vectors, second = (rows, -(-inputs // SIZE)), RESIDUAL_DTYPES[description["bits"]]
        layout: Layout = {"codes": (vectors, torch.int16)}
        if second is not None:
            layout["residual"] = (vectors, second)
        return layout | {"scale": ((1,), torch.float32)}

    @property
    def bits(self) -> int:
        """A weight's."""
        return int(self.described["bits"])

    @property
    def codes(self) -> Tensor:
        """Of `E8Grid(bits)`, `[out, ⌈in / 8⌉]` int32."""
        return self._codes(slice(None))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
        return self._decode(slice(None), dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of some rows, `[*indices.shape, in]`; no other row is decoded."""
        return self._decode(indices.reshape(-1), dtype).view(*indices.shape, self.shape[1])

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Lattice:
        """Any outputs; of inputs whole vectors of eight, in any order.

        Raises:
            FeatherweightError: a cut through a vector; it names the legal cuts.
        """
        width = self.shape[1]
        columns = as_indices(slice(None) if inputs is None else inputs, width, self.stored["codes"].device)
        vectors = whole_groups(columns, SIZE, width)
        rows = slice(None) if outputs is None else outputs
        planes = {name: each[rows][:, vectors].contiguous() for name, each in self.stored.items() if name != "scale"}
        shape = (len(planes["codes"]), len(columns))
        return Lattice(self.describe(shape, self.bits), planes | {"scale": self.stored["scale"]})

    def _decode(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        return (E8Grid(self.bits).units(self._codes(rows)) * self.stored["scale"]).flatten(-2)[:, : self.shape[1]].to(dtype)

    def _codes(self, rows: slice | Tensor) -> Tensor:
        codes = self.stored["codes"][rows].to(torch.int32) & 0xFFFF
        if self.bits > 2:
            codes |= self.stored["residual"][rows].to(torch.int32) << 16
        return codes
