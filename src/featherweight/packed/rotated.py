"""A weight that stands between maps of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.transforms import Diagonal, Hadamard, Permutation, ScaledHadamard, Transform, trusted
from featherweight.packed.base import Described, Layout, PackedWeight, from_tensors, layout_of
from featherweight.packed.cuts import as_indices
from featherweight.packed.maps import description_of, map_layout, read_map, write_map

PREFIX = "inner_"
SIDES = ("input", "output")


@dataclass(frozen=True, eq=False)
class Rotated(Described):
    """`W = O⁻¹ inner T`: the input is mapped by `T`, the small product's output by `O⁻¹`; either may be missing.

    Maps are diagonals (factors in a floating dtype), permutations (16- or 32-bit indices) and signed Hadamards (1 bit a
    column, or a factor), in names like `input_factors`.

    Attributes:
        described: as `describe` writes it.
        stored: tensors as `layout` names them.
    """

    kind: ClassVar[str] = "rotated"

    @staticmethod
    def describe(
        inner: Mapping[str, Any], input: Mapping[str, Any] | None = None, output: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Description of a so described `inner` between so described maps (`featherweight.packed.maps`)."""
        maps = {side: None if each is None else dict(each) for side, each in zip(SIDES, (input, output), strict=True)}
        return {"kind": "rotated", "shape": list(inner["shape"]), "inner": dict(inner), **maps}

    @classmethod
    def of(
        cls,
        inner: PackedWeight,
        input: Transform | None = None,
        output: Transform | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Rotated:
        """`inner`, which holds `O W T⁻¹`, between maps; factors are stored in `dtype`.

        Raises:
            FeatherweightError: a map of another size than the side it stands on.
        """
        maps = dict(zip(SIDES, (input, output), strict=True))
        for (side, each), size in zip(maps.items(), reversed(inner.shape), strict=True):
            if each is not None and each.size != size:
                raise FeatherweightError(f"the map does not fit the {side}s", found=each.size, expected=size)
        described = {side: None if each is None else description_of(each, dtype) for side, each in maps.items()}
        stored = {PREFIX + name: tensor for name, tensor in inner.tensors().items()}
        device = next(iter(stored.values())).device
        for side, each in maps.items():
            if each is not None:
                stored |= {f"{side}_{name}": tensor.to(device) for name, tensor in write_map(each, dtype).items()}
        return cls(cls.describe(inner.description(), **described), stored)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The tensors of `inner`, prefixed, and one for each map."""
        layout = {PREFIX + name: entry for name, entry in layout_of(description["inner"]).items()}
        for side in SIDES:
            if description[side] is not None:
                layout |= {f"{side}_{name}": entry for name, entry in map_layout(description[side]).items()}
        return layout

    @property
    def inner(self) -> PackedWeight:
        """What stands between the maps."""
        inner = {name.removeprefix(PREFIX): tensor for name, tensor in self.stored.items() if name.startswith(PREFIX)}
        return from_tensors(self.described["inner"], inner)

    def around(self, inner: PackedWeight) -> Rotated:
        """The same maps around another weight of this shape."""
        maps = {name: tensor for name, tensor in self.stored.items() if not name.startswith(PREFIX)}
        stored = {PREFIX + name: tensor for name, tensor in inner.tensors().items()}
        described = self.describe(inner.description(), self.described["input"], self.described["output"])
        return Rotated(described, stored | maps)

    @property
    def input(self) -> Transform | None:
        """`T`, of the inputs."""
        return self._map("input")

    @property
    def output(self) -> Transform | None:
        """`O`, whose inverse maps the outputs."""
        return self._map("output")

    @property
    def is_linear(self) -> bool:
        """As `inner`."""
        return self.inner.is_linear

    @property
    def support(self) -> Tensor | None:
        """That of `inner`, moved along; None where it is mixed away."""
        mask, maps = self.inner.support, (self.input, self.output)
        if mask is None or any(isinstance(each, Hadamard | ScaledHadamard) for each in maps):
            return None
        return self._back(mask.to(torch.float32)) != 0

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`O⁻¹ inner T`, `[out, in]`, in float32, then rounded to `dtype`."""
        return self._back(self.inner.dequantize()).to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ`, `[..., out]`: the input mapped, multiplied by `inner`, the output mapped back."""
        before, after = self.input, self.output
        product = self.inner.matmul(x if before is None else before.apply(x))
        return product if after is None else after.inverse().apply(product)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Rotated:
        """What `inner` can cut; inputs keep the order in which `inner` reads them.

        Raises:
            FeatherweightError: a cut on a side that a Hadamard mixes.
        """
        chosen: list[slice | Tensor | None] = []
        maps: list[Transform | None] = []
        for side, wanted, size in (("output", outputs, self.shape[0]), ("input", inputs, self.shape[1])):
            indices, left = _cut(self._map(side), wanted, size, side)
            chosen.append(indices)
            maps.append(left)
        dtypes = [tensor.dtype for name, tensor in self.stored.items() if name.endswith("put_factors")]
        inner = self.inner.take(chosen[0], chosen[1])
        return Rotated.of(inner, maps[1], maps[0], dtypes[0] if dtypes else torch.float32)

    def _back(self, values: Tensor) -> Tensor:
        """`O⁻¹ values T`."""
        before, after = self.input, self.output
        values = values if before is None else before.transpose().apply(values)
        return values if after is None else after.inverse().apply(values.t()).t()

    def _map(self, side: str) -> Transform | None:
        described = self.described[side]
        if described is None:
            return None
        return read_map(described, {name: self.stored[f"{side}_{name}"] for name in map_layout(described)})


def _cut(
    transform: Transform | None, wanted: slice | Tensor | None, size: int, side: str
) -> tuple[slice | Tensor | None, Transform | None]:
    """The columns (rows) of `inner` that remain of a cut, and the map of what is left."""
    if wanted is None or transform is None:
        return wanted, transform
    device = next(each.device for each in vars(transform).values() if isinstance(each, Tensor))
    indices = as_indices(wanted, size, device)
    if isinstance(transform, Diagonal):
        return indices, trusted(Diagonal, values=transform.values[indices])
    if isinstance(transform, Permutation):
        place = torch.full((size,), -1, device=device)
        place[indices] = torch.arange(len(indices), device=device)
        moved = place[transform.indices]
        return (moved >= 0).nonzero()[:, 0], trusted(Permutation, indices=moved[moved >= 0])
    raise FeatherweightError(
        f"{side}s that a Hadamard mixes cannot be cut",
        found=f"{len(indices)} of {size}",
        expected=f"all {side}s",
        fix="dequantize it and pack the part you need",
    )
