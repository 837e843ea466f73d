"""One pass over the dense model: how far each block turns its input, and what each channel and head adds, block by block."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from featherweight.models.units import Units
from featherweight.packed.files import write_text

NAME = "ranking.json"


@dataclass
class Ranking:
    """What is known of the dense model's blocks; kept in a file, so that a killed run goes on.

    Attributes:
        influence: by block, `1 − mean cos(input, output)` over tokens.
        scores: by block, for each MLP channel `s / √(Σ s · E‖h‖²)`: of what it adds to the block's output, the geometric mean
            of its shares in what all of the MLP adds, and in the hidden states behind the block; empty if not asked for.
    """

    influence: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Ranking:
        """What an earlier run of the same folder found out."""
        path = folder / NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_text(folder / NAME, json.dumps(vars(self)))

    def add(self, block: str, before: list[Tensor], after: list[Tensor], scores: Tensor) -> None:
        """Enter one block.

        Args:
            block: module path.
            before, after: hidden states per batch, `[samples, length, hidden]`.
            scores: what each channel adds, `[channels]`, or empty.
        """
        pairs = zip(before, after, strict=True)
        cosines = torch.cat([nn.functional.cosine_similarity(one, other, dim=-1).flatten() for one, other in pairs])
        self.influence[block] = 1 - float(cosines.mean())
        stream = torch.cat([states.square().sum(-1).flatten() for states in after]).mean()
        self.scores[block] = (scores / (scores.sum() * stream).sqrt()).tolist()

    def least(self, count: int) -> list[str]:
        """The blocks that turn their inputs least."""
        return sorted(self.influence, key=lambda block: self.influence[block])[:count]

    def share(self, fraction: float, kept: tuple[str, ...]) -> dict[str, int]:
        """How many channels go from each kept block: the least of all blocks together; each block keeps at least one.

        Args:
            fraction: of all channels, rounded down.
            kept: blocks that stay.
        """
        ranked = sorted((score, block) for block in kept for score in self.scores[block])
        owed, gone = int(len(ranked) * fraction), dict.fromkeys(kept, 0)
        for _, block in ranked:
            if owed and gone[block] < len(self.scores[block]) - 1:
                gone[block] += 1
                owed -= 1
        return gone


def score_units(units: Units, weight: Tensor, hessian: Tensor) -> Tensor:
    """What each unit adds to the reader's output, `tr(W_u H_uu W_uᵀ)`, `[units]`; for a channel `E[x_j²] ‖w_j‖²`.

    Args:
        units: that are scored.
        weight: of their reader, `[out, in]`.
        hessian: mean of `x xᵀ` of its input, `[in, in]`.
    """
    columns = torch.tensor(units.columns, device=weight.device).argsort(stable=True).view(units.count, -1)
    parts = weight[:, columns].permute(1, 0, 2)  # [units, out, columns of a unit]
    return (parts.transpose(1, 2) @ parts * hessian[columns[:, :, None], columns[:, None, :]]).sum((1, 2))


def choose(units: Units, scores: Tensor, gone: int) -> Tensor:
    """The units that stay when `gone` of every class go, those of least score; rising, on the CPU."""
    classes = torch.tensor(units.classes)
    each = units.in_class() - gone
    kept = []
    for one in classes.unique():
        members = (classes == one).nonzero().flatten()
        kept.append(members[scores.cpu()[members].argsort(descending=True, stable=True)[:each]])
    return torch.cat(kept).sort().values
