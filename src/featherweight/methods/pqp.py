"""PQP: round first, then learn which of the rounded weights can go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from featherweight.masks.scores import ria
from featherweight.methods.base import Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.learned import Learned


@dataclass(frozen=True)
class PQP(Learned):
    """After a step that rounds: drop by `|q_ij| · m_ij`, with `m` RIA's score of the original weights scaled to 0…1 in each linear.

    The objective of `Learned` gains `error_weight` times what the rounding errors `E = W − Q` of kept weights do, so that
    badly rounded weights go rather than others. Zeros are exact, and what stays lies on the grid of the step before.

    Attributes:
        error_weight: of that term; 0 leaves it out.
        error_term: "linear", `Σ_linears E[‖(E ⊙ M) x‖²] / E[‖W x‖²]` from activation norms (our form); "block", the energy of
            the block's output with all weights `E ⊙ M`, relative to the dense output's (the original's, whose residual path
            makes it nearly constant).
    """

    name: ClassVar[str] = "pqp"
    summary: ClassVar[str] = "prune what was rounded, by learned ratios and a score that knows both"
    source: ClassVar[str] = "PQP: Joint Post-training Quantization and Pruning for Efficient LLM Compression"
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"method": "gptq", "bits": 4, "group_size": 128}, {"ratio": 0.5})}

    error_weight: float = 0.1
    error_term: Literal["linear", "block"] = "linear"

    def score(self, weight: Tensor, values: Tensor, rms: Tensor) -> Tensor:
        """`|q| · (s − min s) / (max s − min s)` with `s` the original weights' RIA score."""
        importance = ria(weight, rms)
        low, high = importance.min(), importance.max()
        return values.abs() * (importance - low) / (high - low).clamp(min=1e-30)

    def extra_loss(self, run: BlockRun, batch: int, keep: Mapping[str, Tensor]) -> Tensor | float:
        """`error_weight` times the term of rounding errors."""
        if not self.error_weight:
            return 0.0
        errors = {
            name: (run.weights[name] - run.current[name].dequantize().to(mask.device)) * mask for name, mask in keep.items()
        }
        if self.error_term == "block":
            reference = run.energy(run.reference(batch).float()).clamp(min=1e-12)
            return self.error_weight * (run.energy(run.run(batch, errors).float()) / reference).mean()
        total: Tensor | float = 0.0
        for name, error in errors.items():
            energy = run.statistics[name].mean_sum_sq().to(error.device, torch.float32)
            total = total + (error.square() @ energy).sum() / (run.weights[name].square() @ energy).sum()
        return self.error_weight * total / len(errors)
