"""What compressing one block needs, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.engine.phases import Phases
from featherweight.engine.progress import Event
from featherweight.engine.ranks import Ranks
from featherweight.models.replay import BlockInputs
from featherweight.packed.base import PackedWeight
from featherweight.planning.plan import Plan
from featherweight.statistics.store import StatisticsStore


@dataclass(frozen=True)
class BlockTask:
    """What compressing one block needs.

    Attributes:
        plan: the table.
        model: skeleton with this block materialised.
        block: its path.
        inputs: calibration inputs of the block; None for recipes without data.
        prefix: hash of everything compressed before, for the statistics' key.
        tokens: hash of the calibration tokens.
        store: where statistics are kept.
        keep: whether this block's statistics are kept.
        report: progress sink.
        dtype: in which the block runs.
        reference: what the block of the dense chain makes of each batch, where methods that learn are to match that; None for
            what the dense block makes of `inputs`.
        ranks: that compress together; `inputs` and `reference` are this one's share.
        phases: where the seconds go.
        owners: the rank that compresses a linear, by name.
    """

    plan: Plan
    model: nn.Module
    block: str
    inputs: BlockInputs | None
    prefix: str
    tokens: str
    store: StatisticsStore
    keep: bool
    report: Callable[[Event], None]
    dtype: torch.dtype
    reference: Sequence[Tensor] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    phases: Phases = field(default_factory=lambda: Phases(torch.device("cpu")))
    owners: Mapping[str, int] = field(default_factory=dict)

    def owns(self, name: str) -> bool:
        """Whether this rank compresses the linear."""
        return self.owners[name] == self.ranks.rank


@dataclass
class BlockResult:
    """What comes of a block.

    Attributes:
        packed, measured: weights and ledger columns by linear.
        folded: parameters that took up maps, or were trained, by name, as they are stored.
        reference: what the block made of each batch before parameters were trained, once they were.
    """

    packed: dict[str, PackedWeight] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    folded: dict[str, Tensor] = field(default_factory=dict)
    reference: list[Tensor] | None = None


def put_parameter(task: BlockTask, name: str, values: Tensor) -> None:
    """New values for a parameter in memory; whoever looks at the old ones keeps them."""
    parameter = task.model.get_parameter(name)
    parameter.data = values.to(parameter.device, parameter.dtype).contiguous()


def stored_parameter(task: BlockTask, name: str, result: BlockResult) -> Tensor | None:
    """A parameter as the checkpoint or an earlier map has it; None if there is none of that name."""
    if name in result.folded:
        return result.folded[name]
    return task.plan.weights.read(name) if name in task.plan.weights.names() else None
