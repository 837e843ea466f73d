"""Where a tensor of the model lies in a checkpoint: under which name, and as which part of what is stored there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from featherweight.models.experts import Cut, find_experts

#: What the first checkpoints of Mixtral call an expert's linears.
_EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}

#: Values of the 16 codes of a 4-bit float (E2M1), and how many of them share a power of two.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_GROUP = 32


@dataclass(frozen=True)
class Place:
    """Where one tensor lies.

    Attributes:
        disk: name in the checkpoint.
        shape: of what is stored by that name.
        cut: which part of it the tensor is, where experts are stored in one; None for the whole.
        scales: name of the powers of two where 4-bit floats are stored (MXFP4); "" for plain values.
    """

    disk: str
    shape: tuple[int, ...]
    cut: Cut | None = None
    scales: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything in the checkpoint that belongs to it."""
        return (self.disk, self.scales) if self.scales else (self.disk,)

    @property
    def decoded(self) -> torch.dtype | None:
        """Dtype in which coded values are read; None for plain ones."""
        return torch.bfloat16 if self.scales else None

    def read(self, part: Callable[[str, int | None], Tensor]) -> Tensor:
        """The tensor; of experts no more is read than the one.

        Args:
            part: gives what is stored by a name, or its slice of an index.
        """
        if self.cut is None:
            return part(self.disk, None)
        own = self.cut.of(part(self.disk, self.cut.expert))
        return _from_mxfp4(own, self.cut.of(part(self.scales, self.cut.expert))) if self.scales else own.contiguous()


def spelled(places: Iterable[Place], stored: Collection[str], prefix: str) -> list[Place]:
    """Those places that are in the checkpoint, under any of the names that they may have there.

    Args:
        places: by their names in the model.
        stored: names in the checkpoint.
        prefix: the model's base prefix, which names on disk may lack or have where the model has none.
    """
    found = []
    for place in places:
        spellings = zip(*(_spellings(name, prefix) for name in place.names), strict=True)
        there = [names for names in spellings if all(name in stored for name in names)]
        found += [replace(place, disk=disk, scales="".join(scales)) for disk, *scales in there]
    return found


def fused_places(model: nn.Module) -> dict[str, tuple[Place, ...]]:
    """By name, where the tensors of experts may lie in a checkpoint that stores all experts of a mixture in one."""
    places = {}
    for path, experts in find_experts(model).items():
        shapes = experts.layout.shapes()
        for name, cut in experts.layout.cuts().items():
            whole = f"{path}.{cut.fused}"
            places[f"{path}.{name}"] = (Place(whole, shapes[cut.fused], cut), *_coded(whole, shapes[cut.fused], cut))
    return places


def _coded(name: str, shape: tuple[int, ...], cut: Cut) -> tuple[Place, ...]:
    """The same tensor in MXFP4: `[experts, out, in / 32, 16]` bytes."""
    if len(shape) != 3:
        return ()
    count, rows, columns = (shape[0], shape[2], shape[1]) if cut.transposed else shape
    blocks = (count, rows, columns // _GROUP, _GROUP // 2)
    return (Place(f"{name}_blocks", blocks, replace(cut, transposed=False), f"{name}_scales"),)


def _from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Values `[out, in]` bfloat16 of bytes `[out, groups, 16]`, low half first, and exponents `[out, groups]` + 127."""
    values = torch.tensor([*_FP4, *(-value for value in _FP4)], dtype=torch.bfloat16)
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(1).int()
    exponents = scales.int().repeat_interleave(_GROUP, 1) - 127
    return torch.ldexp(values[codes], exponents)


def _spellings(name: str, prefix: str) -> list[str]:
    """Names that a tensor may have on disk: with and without the base prefix, and as Mixtral's first checkpoints have it."""
    other = name.replace(".mlp.", ".block_sparse_moe.")
    if ".experts." in other:
        for ours, theirs in _EXPERTS.items():
            other = other.replace(f".{ours}.", f".{theirs}.")
    return [
        each for one in (name, other) for each in (one, one.removeprefix(prefix) if one.startswith(prefix) else prefix + one)
    ]
