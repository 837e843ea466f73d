"""A decoder block as the methods see it that must look at its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import PackedWeight
from featherweight.statistics.inputs import InputStatistics


@dataclass(frozen=True)
class BlockRun:
    """One block before a step: its weights, what they are stored as, and running it with other weights.

    Of several ranks each runs its part of every batch; `loss` and `energy` are those of all, and a method that sums over tokens by
    itself does it through `summed`.

    Attributes:
        block: its path.
        weights: reference `W [out, in]` float32 of the linears that this method compresses.
        current: what these are stored as so far.
        statistics: of each of these linears' input.
        batches: of calibration inputs.
        reference: the dense block's output of a batch, `[samples, length, hidden]`.
        run: the block's output of a batch with some linears' weights `[out, in]` replaced; all others as they are stored so
            far. Gradients flow to the replacements.
        seed: of the run.
        summed: the sum of a tensor over all ranks; gradients flow to this one's.
        norms: weights `[size]` of the block's norms by parameter name, as they are stored so far; `run` replaces these too.
    """

    block: str
    weights: Mapping[str, Tensor]
    current: Mapping[str, PackedWeight]
    statistics: Mapping[str, InputStatistics]
    batches: int
    reference: Callable[[int], Tensor]
    run: Callable[[int, Mapping[str, Tensor]], Tensor]
    seed: int = 0
    summed: Callable[[Tensor], Tensor] = lambda tensor: tensor
    norms: Mapping[str, Tensor] = field(default_factory=dict)

    def loss(self, batch: int, overrides: Mapping[str, Tensor]) -> Tensor:
        """Mean over channels of the block's squared output error, relative to the channel's energy in the batch.

        `1/d Σ_c Σ_t (ref_tc − out_tc)² / Σ_t ref_tc²`; a scalar in float32.
        """
        reference = self.reference(batch).float()
        return (self.energy(self.run(batch, overrides).float() - reference) / self.energy(reference).clamp(min=1e-12)).mean()

    def energy(self, outputs: Tensor) -> Tensor:
        """`Σ_t y_tc²` over all tokens of a batch of outputs `[samples, length, hidden]`, on whatever rank they are: `[hidden]`."""
        return self.summed(outputs.square().flatten(0, -2).sum(0))

    @torch.no_grad()
    def mean_loss(self, overrides: Mapping[str, Tensor]) -> float:
        """`loss` on all batches."""
        return sum(float(self.loss(batch, overrides)) for batch in range(self.batches)) / self.batches

    def check_gradients(self, loss: Tensor, method: str) -> None:
        """Refuse a block through which no gradient came.

        Raises:
            FeatherweightError: naming the block.
        """
        if not loss.requires_grad:
            raise FeatherweightError(
                f"{method} learns from gradients, and {self.block} returns none",
                found="a block whose output does not depend on its weights through autograd",
                expected="a decoder block in plain torch operations",
                fix="use a method that learns nothing, such as wanda or sparsegpt",
            )
