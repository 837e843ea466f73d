"""Maps of an axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, SCALED
from featherweight.models.hadamard import Construction, construct, construction_named


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

    def transpose(self) -> Transform:
        """`Tᵀ`: what the rows of `W` undergo in `W T`; the inverse if orthogonal."""
        return self.inverse()

    def contragredient(self) -> Transform:
        """`T⁻ᵀ`: what the rows of a consumer's weight undergo, so that `W T⁻¹ (T x) = W x`; T itself if orthogonal."""
        return self

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """`T` as a matrix `[size, size]`."""
        return self.apply(torch.eye(self.size, dtype=dtype)).t()

    @abstractmethod
    def stays_within(self, groups: Tensor) -> bool:
        """Whether no column receives anything from another group; `groups [size]` holds each column's."""


#: Some kind of map.
Map = TypeVar("Map", bound=Transform)


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
        return trusted(Diagonal, values=1 / self.values)

    def transpose(self) -> Diagonal:
        """Itself."""
        return self

    def alike(self, shared: tuple[int, ...]) -> Diagonal:
        """The geometric mean of the factors of columns that have their number in `shared [size]` in common."""
        classes = torch.unique(torch.tensor(shared, device=self.values.device), return_inverse=True)[1]
        logs = self.values.double().log()
        sums = torch.zeros(int(classes.max()) + 1, dtype=torch.float64, device=logs.device).index_add_(0, classes, logs)
        return Diagonal((sums / classes.bincount())[classes].exp())

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
        return trusted(Permutation, indices=self.indices.argsort())

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
        return trusted(Hadamard, signs=self.signs, block=self.block, inverted=not self.inverted, made=self.made)

    def stays_within(self, groups: Tensor) -> bool:
        """Whether every Hadamard block lies inside one group."""
        parts = groups.reshape(-1, self.block)
        return bool((parts == parts[:, :1]).all())

    def _mix(self, values: Tensor) -> Tensor:
        return _mixed(values, self.construction, self.block, self.inverted)


@dataclass(frozen=True, eq=False)
class ScaledHadamard(Transform):
    """`T = H diag(factors)`: a signed Hadamard whose signs were trained as real numbers; orthogonal no longer.

    Attributes:
        factors: `[size]`, floating, none of them 0.
        block, made: as of `Hadamard`.
        inverted: take `diag(factors) Hᵀ` instead.
        divides: take `1 / factors`; so the inverse of a map is one of the same factors, bit for bit.
    """

    factors: Tensor
    block: int
    inverted: bool = False
    divides: bool = False
    made: str | None = None
    kind: ClassVar[str] = SCALED

    @classmethod
    def of(cls, hadamard: Hadamard, *, divides: bool) -> ScaledHadamard:
        """The same map as `hadamard`, with its signs as factors or as divisors."""
        made, signs = hadamard.construction.name, hadamard.signs.to(torch.float32)
        return trusted(cls, factors=signs, block=hadamard.block, inverted=hadamard.inverted, divides=divides, made=made)

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.factors.numel())

    @property
    def construction(self) -> Construction:
        """Of one block."""
        return construct(self.block) if self.made is None else construction_named(self.made)

    def apply(self, values: Tensor) -> Tensor:
        """See `Transform.apply`."""
        return self._scale(self._mix(values)) if self.inverted else self._mix(self._scale(values))

    def inverse(self) -> ScaledHadamard:
        """`diag(1 / factors) Hᵀ`."""
        return self._with(inverted=not self.inverted, divides=not self.divides)

    def transpose(self) -> ScaledHadamard:
        """`diag(factors) Hᵀ`."""
        return self._with(inverted=not self.inverted)

    def contragredient(self) -> ScaledHadamard:
        """`H diag(1 / factors)`."""
        return self._with(divides=not self.divides)

    def stays_within(self, groups: Tensor) -> bool:
        """Whether every Hadamard block lies inside one group."""
        parts = groups.reshape(-1, self.block)
        return bool((parts == parts[:, :1]).all())

    def _scale(self, values: Tensor) -> Tensor:
        factors = self.factors.to(values.device, values.dtype)
        return values / factors if self.divides else values * factors

    def _mix(self, values: Tensor) -> Tensor:
        return _mixed(values, self.construction, self.block, self.inverted)

    def _with(self, **changed: bool) -> ScaledHadamard:
        return trusted(type(self), **{**vars(self), **changed})


def _mixed(values: Tensor, construction: Construction, block: int, transposed: bool) -> Tensor:
    """Every block of columns times the matrix, or its transpose."""
    blocks = values.reshape(*values.shape[:-1], -1, block)
    return construction.multiply(blocks, transposed).reshape(values.shape)


def trusted(kind: type[Map], **values: Any) -> Map:
    """A map of values that were checked before: nothing waits for a device to look at them again."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
