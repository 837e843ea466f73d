"""One pass over the dense model: how far each block turns its input, and what each channel and head adds, block by block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from featherweight.engine.smaller import Drop
from featherweight.models.units import Units
from featherweight.packed.files import write_text

NAME = "ranking.json"


@dataclass
class Ranking:
    """What is known of the dense model's blocks; kept in a file, so that a killed run goes on.

    Attributes:
        influence: by block, `1 − mean cos(input, output)` over tokens.
        scores: by block and kind, for each unit `s / √(Σ s · E‖h‖²)`: of what it adds to the block's output, the geometric mean
            of its shares in what all such units add, and in the stream of hidden states behind the block.
    """

    influence: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Ranking:
        """What an earlier run of the same folder found out."""
        path = folder / NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_text(folder / NAME, json.dumps(vars(self)))

    def add(self, block: str, before: list[Tensor], after: list[Tensor], scores: Mapping[str, Tensor]) -> None:
        """Enter one block.

        Args:
            block: module path.
            before, after: hidden states per batch, `[samples, length, hidden]`.
            scores: by kind, what each unit adds, `[units]`.
        """
        pairs = zip(before, after, strict=True)
        cosines = torch.cat([nn.functional.cosine_similarity(one, other, dim=-1).flatten() for one, other in pairs])
        self.influence[block] = 1 - float(cosines.mean())
        stream = torch.cat([states.square().sum(-1).flatten() for states in after]).mean()
        self.scores[block] = {kind: (values / (values.sum() * stream).sqrt()).tolist() for kind, values in scores.items()}

    def least(self, count: int) -> list[str]:
        """The blocks that turn their inputs least."""
        return sorted(self.influence, key=lambda block: self.influence[block])[:count]

    def drops(self, fractions: Mapping[str, float], kept: tuple[str, ...]) -> dict[str, Drop]:
        """How many units go from each kept block, by kind: the least of all blocks together; each keeps at least one.

        Args:
            fractions: of all units of a kind, rounded down.
            kept: blocks that stay.
        """
        gone: dict[str, dict[str, int]] = {block: dict.fromkeys(fractions, 0) for block in kept}
        for kind, fraction in fractions.items():
            ranked = sorted((score, block) for block in kept for score in self.scores[block][kind])
            owed = int(len(ranked) * fraction)
            for _, block in ranked:
                if owed and gone[block][kind] < len(self.scores[block][kind]) - 1:
                    gone[block][kind] += 1
                    owed -= 1
        return dict(gone)


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
