"""What every packed weight answers: its shape, its bytes, its values, its product."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError

#: The stored tensors of one weight: name -> (shape, dtype). Bytes are known from it alone.
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]

_KINDS: dict[str, type[PackedWeight]] = {}


class PackedWeight(ABC):
    """How one `[out, in]` weight is stored. Immutable; leaves hold tensors, nodes hold packed weights.

    A subclass names its `kind`, describes itself as JSON (`description`), derives the stored tensors' shapes and dtypes
    from that description alone (`layout`), and can be rebuilt from both (`from_tensors`). Everything that needs bytes
    before the run asks `layout`, everything that runs asks `dequantize` or `matmul`.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Enter the subclass under its `kind`."""
        super().__init_subclass__(**keywords)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of the weight that this stands for."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """JSON-serialisable settings, `kind` and `shape` included; enough for `layout`."""

    @classmethod
    @abstractmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """Stored tensors of a weight so described."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, keyed as in `layout`; a node prefixes its children's names (`inner_codes`)."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedWeight:
        """The inverse of `description` and `tensors`; keeps the tensors as they are, without a copy."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight's values, `[out, in]`, on the stored tensors' device."""

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of some output rows, `[*indices.shape, in]` (an embedding's look-up)."""
        return self.dequantize(dtype)[indices]

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ` for `x` of shape `[..., in]`; the reference every kernel is compared with."""
        return torch.nn.functional.linear(x, self.dequantize(x.dtype))

    @property
    def is_linear(self) -> bool:
        """Whether `matmul(x)` is `x · dequantize()ᵀ`; not so for storages that round their input."""
        return True

    @property
    def support(self) -> Tensor | None:
        """Boolean `[out, in]`, False where the weight is exactly zero by construction; None where nothing was dropped."""
        return None

    @property
    def nbytes(self) -> int:
        """Stored bytes, exact on every device, meta included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> PackedWeight:
        """The packed weight of some outputs and inputs only; an illegal cut is an error that names the legal ones."""
        raise FeatherweightError(
            f"{self.kind} cannot be cut",
            found=f"outputs {outputs}, inputs {inputs}",
            expected="a storage whose take() is written",
            fix="dequantize it and pack the part you need",
        )

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight with its tensors on `device`, dtypes unchanged."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return type(self).from_tensors(self.description(), moved)


@dataclass(frozen=True, eq=False)
class Described(PackedWeight):
    """A packed weight that is nothing but its description and its stored tensors.

    Attributes:
        described: the description.
        stored: tensors as `layout` names them.
    """

    described: Mapping[str, Any]
    stored: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        rows, inputs = self.described["shape"]
        return (rows, inputs)

    def description(self) -> dict[str, Any]:
        """As `describe` wrote it."""
        return dict(self.described)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors."""
        return dict(self.stored)

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Described:
        """The weight of these stored tensors."""
        return cls(dict(description), {name: tensors[name] for name in cls.layout(description)})


def kind_of(description: Mapping[str, Any]) -> type[PackedWeight]:
    """The class that a description names."""
    kind = description.get("kind")
    if kind not in _KINDS:
        raise FeatherweightError(
            "unknown storage", found=kind, expected=", ".join(sorted(_KINDS)), fix="load it with a newer featherweight"
        )
    return _KINDS[kind]


def layout_of(description: Mapping[str, Any]) -> Layout:
    """The stored tensors of any described weight."""
    return kind_of(description).layout(description)


def layout_bytes(layout: Layout) -> int:
    """Bytes of the tensors alone."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def described_bytes(description: Mapping[str, Any]) -> int:
    """Stored bytes of any described weight."""
    return layout_bytes(layout_of(description))


def from_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedWeight:
    """Any packed weight from its description and tensors."""
    return kind_of(description).from_tensors(description, tensors)


def empty(description: Mapping[str, Any], device: torch.device | str = "meta") -> PackedWeight:
    """A weight so described with uninitialised tensors: the plan's form (meta) or a file's destination."""
    tensors = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in layout_of(description).items()}
    return from_tensors(description, tensors)


def children(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Descriptions of a node's packed children by the prefix of their tensors."""
    return {f"{key}_": value for key, value in description.items() if isinstance(value, Mapping) and "kind" in value}
