"""A weight of which whole inputs or outputs were dropped: what is left is a smaller weight, multiplied as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.packed.base import Layout, PackedWeight, from_tensors, layout_of
from featherweight.packed.cuts import as_indices
from featherweight.packed.sparse_rows import position_dtype, read_positions

PREFIX = "inner_"


@dataclass(frozen=True, eq=False)
class Sliced(PackedWeight):
    """`W[outputs, inputs] = inner`, exactly 0 elsewhere.

    A product takes the kept inputs out of `x`, multiplies by the small weight and puts the result at the kept outputs of a
    zero; a bias is added to all outputs, as to a weight whose rows were zeroed.

    Attributes:
        full: `(out, in)` of the weight that this stands for.
        inner: the part that is left, any storage.
        inputs: kept inputs in rising order, `[inner in]` int16 read as unsigned (int32 beyond 65536); None for all.
        outputs: kept outputs, likewise.
    """

    kind: ClassVar[str] = "sliced"

    full: tuple[int, int]
    inner: PackedWeight
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @staticmethod
    def describe(full: tuple[int, int], inner: Mapping[str, Any]) -> dict[str, Any]:
        """Description of a weight of shape `full` of which a so described `inner` is left."""
        return {"kind": "sliced", "shape": list(full), "inner": dict(inner)}

    @classmethod
    def of(
        cls, inner: PackedWeight, full: tuple[int, int], inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> Sliced:
        """Place `inner` at some inputs and outputs, each int64 and rising; None where `inner` has them all."""
        rows, columns = full
        return cls(
            full,
            inner,
            None if inputs is None or len(inputs) == columns else inputs.to(position_dtype(columns)),
            None if outputs is None or len(outputs) == rows else outputs.to(position_dtype(rows)),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`, dropped ones counted."""
        return self.full

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe(self.full, self.inner.description())

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The tensors of `inner`, prefixed; `kept_inputs` and `kept_outputs` where some were dropped."""
        inner = description["inner"]
        layout = {PREFIX + name: entry for name, entry in layout_of(inner).items()}
        for name, side in (("kept_outputs", 0), ("kept_inputs", 1)):
            if inner["shape"][side] < description["shape"][side]:
                layout[name] = ((inner["shape"][side],), position_dtype(description["shape"][side]))
        return layout

    def tensors(self) -> dict[str, Tensor]:
        """As `layout`."""
        named = {"kept_inputs": self.inputs, "kept_outputs": self.outputs}
        inner = {PREFIX + name: tensor for name, tensor in self.inner.tensors().items()}
        return inner | {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Sliced:
        """The weight of these stored tensors."""
        rows, columns = description["shape"]
        inner = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        return cls(
            (rows, columns),
            from_tensors(description["inner"], inner),
            tensors.get("kept_inputs"),
            tensors.get("kept_outputs"),
        )

    def kept(self, side: int) -> Tensor:
        """Kept outputs (`side` 0) or inputs (1), int64."""
        stored = self.outputs if side == 0 else self.inputs
        device = next(iter(self.inner.tensors().values())).device
        return torch.arange(self.full[side], device=device) if stored is None else read_positions(stored)

    @property
    def is_linear(self) -> bool:
        """As `inner`."""
        return self.inner.is_linear

    @property
    def support(self) -> Tensor:
        """`[out, in]`, False in dropped rows and columns and where `inner` dropped."""
        outputs, inputs = self.kept(0), self.kept(1)
        mask = torch.zeros(self.full, dtype=torch.bool, device=inputs.device)
        inner = self.inner.support
        mask[outputs[:, None], inputs] = True if inner is None else inner.to(mask.device)
        return mask

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`, exactly 0 where dropped."""
        values = self.inner.dequantize(dtype)
        whole = torch.zeros(self.full, dtype=dtype, device=values.device)
        if values.device.type != "meta":
            whole[self.kept(0)[:, None], self.kept(1)] = values
        return whole

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ` by the small weight, `[..., out]`."""
        small = x if self.inputs is None else x.index_select(-1, read_positions(self.inputs))
        product = self.inner.matmul(small)
        if self.outputs is None:
            return product
        whole = product.new_zeros(*product.shape[:-1], self.full[0])
        return whole.index_copy_(-1, read_positions(self.outputs), product)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Sliced:
        """What `inner` can cut of the chosen outputs and inputs that are left, in the chosen order."""
        chosen: list[Tensor | None] = []
        places: list[Tensor] = []
        sizes: list[int] = []
        for side, wanted in ((0, outputs), (1, inputs)):
            kept = self.kept(side)
            if wanted is None:
                chosen.append(None)
                places.append(kept)
                sizes.append(self.full[side])
                continue
            asked = as_indices(wanted, self.full[side], kept.device)
            where = torch.full((self.full[side],), -1, device=kept.device)
            where[kept] = torch.arange(len(kept), device=kept.device)
            left = where[asked] >= 0
            chosen.append(where[asked][left])
            places.append(left.nonzero()[:, 0])
            sizes.append(len(asked))
        inner = self.inner.take(chosen[0], chosen[1])
        return Sliced.of(inner, (sizes[0], sizes[1]), places[1], places[0])
