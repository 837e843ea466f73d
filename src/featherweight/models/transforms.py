"""Maps of an axis, and folding them exactly into the weights on either side of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis, Producer
from featherweight.models.hadamard import Construction, construct, construction_named
from featherweight.models.structure import is_transposed


class Transform(ABC):
    """An invertible linear map `T [size, size]` of an axis: `x` becomes `T x`.

    `kind` is what an axis must admit for it to be folded: "diagonal", "permutation" or "orthogonal".
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of columns of the axis."""

    @abstractmethod
    def apply(self, values: Tensor) -> Tensor:
        """`T x` along the last dimension of `values [..., size]`, in their dtype."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The map that undoes this one."""

    def contragredient(self) -> Transform:
        """`T⁻ᵀ`: what the rows of a consumer's weight undergo, so that `W T⁻¹ (T x) = W x`; T itself if orthogonal."""
        return self

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """`T` as a matrix `[size, size]`."""
        return self.apply(torch.eye(self.size, dtype=dtype)).t()

    @abstractmethod
    def stays_within(self, groups: Tensor) -> bool:
        """Whether no column receives anything from another group; `groups [size]` holds each column's."""


@dataclass(frozen=True, eq=False)
class Diagonal(Transform):
    """`T = diag(values)`.

    Attributes:
        values: `[size]`, floating, all positive and finite: a ReLU lets only positive factors through.
    """

    values: Tensor
    kind: ClassVar[str] = DIAGONAL

    def __post_init__(self) -> None:
        good = self.values.ndim == 1 and self.values.is_floating_point()
        if not good or not bool((torch.isfinite(self.values) & (self.values > 0)).all()):
            raise FeatherweightError(
                "a diagonal needs one positive, finite factor for each column",
                found=f"{self.values.dtype} {list(self.values.shape)}, smallest {float(self.values.min())}",
            )

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.values.numel())

    def apply(self, values: Tensor) -> Tensor:
        """See `Transform.apply`."""
        return values * self.values.to(values.device, values.dtype)

    def inverse(self) -> Diagonal:
        """`diag(1 / values)`."""
        return Diagonal(1 / self.values)

    def contragredient(self) -> Diagonal:
        """`diag(1 / values)`, which is its own transpose."""
        return self.inverse()

    def stays_within(self, groups: Tensor) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, eq=False)
class Permutation(Transform):
    """`(T x)[c] = x[indices[c]]`.

    Attributes:
        indices: `[size]`, int64, each of 0 to size - 1 once.
    """

    indices: Tensor
    kind: ClassVar[str] = PERMUTATION

    def __post_init__(self) -> None:
        size = self.indices.numel()
        good = self.indices.ndim == 1 and self.indices.dtype == torch.int64
        if not good or not torch.equal(self.indices.sort().values.cpu(), torch.arange(size)):
            raise FeatherweightError(
                "these are not the indices of a permutation",
                found=f"{self.indices.dtype} {list(self.indices.shape)}",
                expected=f"int64, each of 0 to {size - 1} once",
            )

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.indices.numel())

    def apply(self, values: Tensor) -> Tensor:
        """See `Transform.apply`."""
        return values[..., self.indices.to(values.device)]

    def inverse(self) -> Permutation:
        """The permutation that puts everything back."""
        return Permutation(self.indices.argsort())

    def stays_within(self, groups: Tensor) -> bool:
        """Whether every column comes from its own group."""
        return torch.equal(groups[self.indices.to(groups.device)], groups)


@dataclass(frozen=True, eq=False)
class Hadamard(Transform):
    """`T = H diag(signs)`, H block-diagonal with normalised Hadamard blocks, or near to such (`models/hadamard.py`); orthogonal.

    Attributes:
        signs: `[size]`, each 1 or -1.
        block: size of one Hadamard block; it divides `size`.
        inverted: take `diag(signs) Hᵀ` instead, the inverse.
        made: name of the blocks' construction as it is stored; None for today's best.
    """

    signs: Tensor
    block: int
    inverted: bool = False
    made: str | None = None
    kind: ClassVar[str] = ORTHOGONAL

    def __post_init__(self) -> None:
        size = self.signs.numel()
        if self.signs.ndim != 1 or not bool((self.signs.abs() == 1).all()):
            raise FeatherweightError("a signed Hadamard needs a sign, 1 or -1, for each column")
        if self.block < 1 or size % self.block:
            raise FeatherweightError(
                f"a Hadamard block of {self.block} does not fit an axis of {size} columns",
                expected="a block that divides the size",
                fix=f"use {size} for one block",
            )
        if self.construction.size != self.block:
            raise FeatherweightError(
                f"{self.made} is no matrix of this block", found=self.construction.size, expected=self.block
            )

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.signs.numel())

    def apply(self, values: Tensor) -> Tensor:
        """See `Transform.apply`."""
        signs = self.signs.to(values.device, values.dtype)
        return self._mix(values) * signs if self.inverted else self._mix(values * signs)

    @property
    def construction(self) -> Construction:
        """Of one block."""
        return construct(self.block) if self.made is None else construction_named(self.made)

    def inverse(self) -> Hadamard:
        """The transpose."""
        return Hadamard(self.signs, self.block, not self.inverted, self.made)

    def stays_within(self, groups: Tensor) -> bool:
        """Whether every Hadamard block lies inside one group."""
        parts = groups.reshape(-1, self.block)
        return bool((parts == parts[:, :1]).all())

    def _mix(self, values: Tensor) -> Tensor:
        blocks = values.reshape(*values.shape[:-1], -1, self.block)
        return self.construction.multiply(blocks, self.inverted).reshape(values.shape)


def fold(model: nn.Module, axis: Axis, transform: Transform) -> None:
    """Fold `transform` into the producers of `axis`, and its inverse into all consumers, in place.

    The model computes the same function: exactly in real numbers, to the rounding of the stored dtype in fact (the product is
    taken in float64). The producers and consumers must be loaded.

    Raises:
        FeatherweightError: the axis does not admit this kind; something else reads it too; columns that one row makes would
            be treated differently; the map leaves an attention head; or a weight is on the meta device.
    """
    check_foldable(axis, transform)
    for name, tensor in folded_tensors(model, axis, transform).items():
        with torch.no_grad():
            model.get_parameter(name).copy_(tensor)


def check_foldable(axis: Axis, transform: Transform) -> None:
    """Raise the error that `fold` would raise for this map, whatever the weights; see there."""
    if transform.kind not in axis.admits:
        made = ", ".join(producer.name for producer in axis.producers) or "nothing that could take the map up"
        raise FeatherweightError(
            f"{axis.name} admits no {transform.kind} map",
            found=f"made by {made}; read by {', '.join(axis.consumers + axis.others)}",
            expected=", ".join(sorted(axis.admits)) or "no map at all, or axes completed by find_producers",
            fix="keep the map as a tensor beside the weight (Rotated), or choose one that is admitted",
        )
    if axis.others:
        raise FeatherweightError(f"{axis.name} is read by modules that take no part", found=", ".join(axis.others))
    if transform.size != axis.size:
        raise FeatherweightError(f"the map does not fit {axis.name}", found=transform.size, expected=axis.size)
    if axis.groups is not None and not transform.stays_within(torch.tensor(axis.groups)):
        raise FeatherweightError(
            f"the {transform.kind} map mixes columns of {axis.name} across attention heads",
            expected=f"a map within each of {len(set(axis.groups))} heads",
            fix="draw it with featherweight.models.draw_transform",
        )
    if axis.shared is not None:
        _check_shared(axis, torch.tensor(axis.shared), transform)


def folded_tensors(
    model: nn.Module, axis: Axis, transform: Transform, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors that folding changes, by parameter name, in float64 and in the layout that their modules store.

    Args:
        model: gives the modules' types, and the tensors where `values` is None.
        axis: with the producers that take part.
        transform: of the axis.
        values: tensors to fold into, by parameter name, instead of the model's.
    """

    def read(name: str) -> Tensor | None:
        tensor = values.get(name) if values is not None else _parameter(model, name)
        return tensor if tensor is None else tensor.detach().double()

    def oriented(module: str, tensor: Tensor) -> Tensor:
        return tensor.t() if is_transposed(model.get_submodule(module)) else tensor

    changed: dict[str, Tensor] = {}
    inverse = transform.contragredient()
    for consumer in axis.consumers:
        weight = read(f"{consumer}.weight")
        assert weight is not None  # a consumer is a linear, and a linear has a weight
        changed[f"{consumer}.weight"] = oriented(consumer, inverse.apply(oriented(consumer, weight)))
    for producer in axis.producers:
        if transform.kind not in producer.admits:
            continue
        for leaf, offset in (("weight", producer.offset), ("bias", 0.0)):
            name = f"{producer.name}.{leaf}"
            tensor = changed.get(name, read(name))  # two producers may be rows of one fused linear
            if tensor is None:
                continue
            rows = oriented(producer.name, tensor) if tensor.ndim == 2 else tensor
            changed[name] = _rows_folded(rows + offset, producer, transform) - offset
            if tensor.ndim == 2:
                changed[name] = oriented(producer.name, changed[name])
    return changed


def _rows_folded(tensor: Tensor, producer: Producer, transform: Transform) -> Tensor:
    """`T` applied to the rows that make the axis; `tensor` is `[out]` or `[out, in]`."""
    rows = torch.arange(transform.size) if producer.rows is None else torch.tensor(producer.rows)
    rows = rows.to(tensor.device)
    folded = tensor.clone()
    folded[rows] = transform.apply(tensor[rows].transpose(0, -1)).transpose(0, -1)
    return folded


def _check_shared(axis: Axis, shared: Tensor, transform: Transform) -> None:
    """Columns that are always equal must stay equal under the map."""
    values = torch.randn(int(shared.max()) + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = transform.apply(values[shared])
    first = torch.zeros_like(values)
    first[shared] = after
    apart = ((after - first[shared]).abs() > 1e-9 * after.abs().max()).nonzero().flatten().tolist()
    if apart:
        raise FeatherweightError(
            f"columns of {axis.name} that one row makes (grouped-query heads) would be treated differently",
            found=f"column {apart[0]} and others of class {int(shared[apart[0]])}",
            expected="the same map for all columns of a class",
            fix="draw it with featherweight.models.draw_transform",
        )


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf, None)
    if not isinstance(tensor, Tensor):
        return None
    if tensor.device.type == "meta":
        raise FeatherweightError(f"{name} is not loaded", fix="materialize the block before folding")
    return tensor
