"""A weight of which only some values are stored, with a mask that tells which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.bits import pack, packed_width, unpack
from featherweight.packed.base import Described, Layout, PackedWeight, from_tensors, layout_bytes, layout_of
from featherweight.packed.combinations import forms_of, mask_width, read_mask, write_mask
from featherweight.packed.dense import Dense
from featherweight.packed.dtypes import dtype_from
from featherweight.packed.grouped import Grouped

#: Name of the tensor that holds one entry per weight, by kind of leaf: what the mask compacts.
_COMPACTED = {"dense": "values", "integer": "codes", "floating": "codes"}

PREFIX = "values_"


@dataclass(frozen=True, eq=False)
class Masked(Described):
    """Values of a leaf where the mask is set, exactly 0 elsewhere.

    Kept values (or codes) lie one after the other in row-major order: a row for each output where all outputs keep
    equally many ("row", "N:M"), one stream otherwise. All else that the leaf stores (scales, zero points, group index)
    stays as it is, so every kept value is decoded with the scale of its original group, bit for bit as the solver did.

    The mask is stored in the smallest of its forms, which the description names beside the bytes of all of them:
    "bitmap", 1 bit per weight; for N:M "index", `⌈log2 M⌉` bits per kept value, its place among its M, and "combination",
    `⌈log2 (M over N)⌉` bits per M inputs, 0.75 a weight for 2:4; "implied", none at all: the leaf is stored whole, with
    zeros, where it is not larger so.

    Attributes:
        described: as `describe` writes it.
        stored: tensors as `layout` names them.
    """

    kind: ClassVar[str] = "masked"

    @staticmethod
    def describe(values: Mapping[str, Any], kept: int, pattern: str = "unstructured", implied: bool = False) -> dict[str, Any]:
        """Description of a leaf of which `kept` weights are stored.

        Args:
            values: description of the whole leaf.
            kept: number of weights kept.
            pattern: "unstructured", "row" (equally many in every row) or "N:M".
            implied: store the leaf whole in any case.

        Raises:
            FeatherweightError: a storage that cannot be compacted, or a number that does not fit the pattern.
        """
        if values["kind"] not in _COMPACTED:
            raise FeatherweightError(
                "this storage cannot hold a mask", found=values["kind"], expected=", ".join(_COMPACTED), fix="prune last"
            )
        rows, inputs = values["shape"]
        fits = kept % rows == 0 if pattern != "unstructured" else 0 <= kept <= rows * inputs
        if not fits:
            raise FeatherweightError(
                "the number of kept weights does not fit", found=f"{kept} kept, {pattern}", expected=f"shape {rows} x {inputs}"
            )
        described = {"kind": "masked", "shape": [rows, inputs], "kept": kept, "pattern": pattern, "values": dict(values)}
        forms = ["bitmap", *(forms_of(*_keep_of(described)) if ":" in pattern else []), "implied"]
        sizes = {form: layout_bytes(_layout({**described, "mask": form})) for form in forms}
        described["mask"] = "implied" if implied else min(sizes, key=lambda form: sizes[form])
        return {**described, "bytes": sizes}

    @classmethod
    def describe_like(cls, current: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Description of new `values` under the mask of a described `current`."""
        return cls.describe(values, current["kept"], current["pattern"], current["mask"] == "implied")

    @classmethod
    def of(cls, values: PackedWeight, mask: Tensor, described: Mapping[str, Any]) -> Masked:
        """Keep `values` where `mask [out, in]` is True.

        Args:
            values: a leaf: dense, integer or floating.
            mask: as many True as `described` says, distributed as its pattern says.
            described: from `describe` or `describe_like`.

        Raises:
            FeatherweightError: another number of kept weights than described.
        """
        inner, name = values.description(), _COMPACTED[values.kind]
        found = int(mask.sum())
        if described["mask"] != "implied" and found != described["kept"]:
            raise FeatherweightError("the mask keeps another number of weights", found=found, expected=described["kept"])
        tensors = {PREFIX + key: tensor for key, tensor in values.tensors().items()}
        if described["mask"] == "implied":
            entries = torch.where(mask, _entries(values), _nothing(values))
            tensors[PREFIX + name] = _put_bits(entries, inner)
            return cls(described, tensors)
        lines = _lines(described)
        tensors[PREFIX + name] = _put_bits(_entries(values)[mask].view(lines, described["kept"] // lines), inner)
        return cls(described, {**tensors, "mask": _write_mask(mask, described)})

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The leaf's tensors behind `values_`, one of them compacted; `mask`."""
        return _layout(description)

    @property
    def support(self) -> Tensor:
        """`[out, in]`, False where the weight was dropped; with an implied mask, where it is 0."""
        form = self.described["mask"]
        if form == "implied":
            return self._whole().dequantize() != 0
        inputs = self.shape[1]
        if form == "bitmap":
            return unpack(self.stored["mask"], 1, inputs).to(torch.bool)
        return read_mask(form, self.stored["mask"], *_keep_of(self.described), inputs)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`, exactly 0 where dropped."""
        return self._whole().dequantize(dtype)

    @staticmethod
    def written_mask(mask: Tensor, described: Mapping[str, Any]) -> Tensor:
        """`mask [out, in]` in the form that a description names, "implied" excepted."""
        return _write_mask(mask, described)

    @property
    def values(self) -> PackedWeight:
        """The leaf, whole, with zeros where weights were dropped."""
        return self._whole(packed=True)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Masked:
        """What the leaf can take; after a cut of inputs the mask counts as unstructured.

        Raises:
            FeatherweightError: a cut through a group of the leaf.
        """
        part, mask = self.values.take(outputs, inputs), self.support
        mask = mask if outputs is None else mask[outputs]
        mask = mask if inputs is None else mask[:, inputs]
        pattern = self.described["pattern"] if inputs is None else "unstructured"
        implied = self.described["mask"] == "implied"
        kept = part.shape[0] * (self.described["kept"] // self.shape[0]) if implied and inputs is None else int(mask.sum())
        return Masked.of(part, mask, Masked.describe(part.description(), kept, pattern, implied))

    def _whole(self, packed: bool = False) -> PackedWeight:
        """The leaf with its dropped entries filled in; unless `packed` integer codes are left at 8 bits (faster)."""
        inner = self.described["values"]
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in self.stored.items() if name != "mask"}
        leaf = from_tensors(inner, tensors)
        if self.described["mask"] == "implied":
            return leaf
        if not isinstance(leaf, Grouped):
            kept = tensors[_COMPACTED[leaf.kind]]
            empty = torch.zeros(self.shape, dtype=kept.dtype, device=kept.device)
            return Dense(empty.masked_scatter_(self.support, kept))
        kept = unpack(leaf.codes, leaf.bits, self.described["kept"] // _lines(self.described))
        codes = leaf.zero_codes().expand(self.shape).contiguous().masked_scatter_(self.support, kept)
        return from_tensors(inner, {**tensors, "codes": pack(codes, leaf.bits)}) if packed else leaf.with_codes(codes)


def _layout(description: Mapping[str, Any]) -> Layout:
    inner, kept, form = description["values"], description["kept"], description["mask"]
    layout = {PREFIX + name: entry for name, entry in layout_of(inner).items()}
    if form == "implied":
        return layout
    rows, inputs = description["shape"]
    lines, name = _lines(description), _COMPACTED[inner["kind"]]
    if inner["kind"] == "dense":
        layout[PREFIX + name] = ((lines, kept // lines), dtype_from(inner["dtype"]))
    else:
        layout[PREFIX + name] = ((lines, packed_width(kept // lines, inner["bits"])), torch.uint8)
    if form == "bitmap":
        return {**layout, "mask": ((rows, packed_width(inputs, 1)), torch.uint8)}
    return {**layout, "mask": ((rows, mask_width(form, *_keep_of(description), inputs)), torch.uint8)}


def _lines(description: Mapping[str, Any]) -> int:
    """Rows in which kept values are stored: the outputs where they keep equally many, else one stream."""
    return 1 if description["pattern"] == "unstructured" else int(description["shape"][0])


def _keep_of(description: Mapping[str, Any]) -> tuple[int, int]:
    keep, of = description["pattern"].split(":")
    return int(keep), int(of)


def _write_mask(mask: Tensor, description: Mapping[str, Any]) -> Tensor:
    if description["mask"] == "bitmap":
        return pack(mask.to(torch.uint8), 1)
    return write_mask(description["mask"], mask, *_keep_of(description))


def _entries(leaf: PackedWeight) -> Tensor:
    """What the leaf stores per weight, `[out, in]`: values, or codes as uint8."""
    stored = leaf.tensors()[_COMPACTED[leaf.kind]]
    return unpack(stored, leaf.bits, leaf.inputs) if isinstance(leaf, Grouped) else stored


def _nothing(leaf: PackedWeight) -> Tensor:
    """What stands for 0 in `_entries`, broadcasting to `[out, in]`."""
    if isinstance(leaf, Grouped):
        return leaf.zero_codes()
    return torch.zeros((), dtype=_entries(leaf).dtype, device=_entries(leaf).device)


def _put_bits(entries: Tensor, inner: Mapping[str, Any]) -> Tensor:
    return entries.contiguous() if inner["kind"] == "dense" else pack(entries, inner["bits"])
