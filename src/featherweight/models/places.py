"""Where a tensor of the model lies in a checkpoint: under which name, and as which part of what is stored there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.models.experts import Cut, find_experts

#: What the first checkpoints of Mixtral call an expert's linears.
_EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True)
class Place:
    """Where one tensor lies.

    Attributes:
        disk: name in the checkpoint.
        shape: of what is stored by that name.
        cut: which part of it the tensor is, where experts are stored in one; None for the whole.
    """

    disk: str
    shape: tuple[int, ...]
    cut: Cut | None = None

    def read(self, file: Any) -> Tensor:
        """The tensor, from an open safetensors file; of experts no more is read than the one."""
        if self.cut is None:
            tensor: Tensor = file.get_tensor(self.disk)
            return tensor
        return self.cut.of(file.get_slice(self.disk)[self.cut.expert]).contiguous()


def spellings(name: str, prefix: str) -> list[str]:
    """Names that a tensor may have on disk: with and without the base prefix, and as Mixtral's first checkpoints have it."""
    spelled = name.replace(".mlp.", ".block_sparse_moe.")
    if ".experts." in spelled:
        for ours, theirs in _EXPERTS.items():
            spelled = spelled.replace(f".{ours}.", f".{theirs}.")
    names = dict.fromkeys((name, spelled))
    return [each for one in names for each in (one, one.removeprefix(prefix) if one.startswith(prefix) else prefix + one)]


def fused_places(model: nn.Module) -> dict[str, Place]:
    """By name, where the tensors of experts lie in a checkpoint that stores all experts of a mixture in one."""
    places = {}
    for path, experts in find_experts(model).items():
        shapes = experts.layout.shapes()
        for name, cut in experts.layout.cuts().items():
            places[f"{path}.{name}"] = Place(f"{path}.{cut.fused}", shapes[cut.fused], cut)
    return places
