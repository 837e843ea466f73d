"""What a chain of methods does to a made-up layer: the error it leaves, and the memory its product takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from featherweight.methods.base import Method, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.methods.inside import compress_inside
from featherweight.models.transforms import Transform
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedLinear
from featherweight.packed.maps import as_stored
from featherweight.packed.rotated import Rotated
from featherweight.planning.memory import LiveBytes
from featherweight.statistics.inputs import KINDS, InputStatistics

OUTPUTS, INPUTS, TOKENS = 96, 768, 3072

#: Few, but more than any kernel multiplies without decoding the weight first: prompts are longer.
FEW = 65


@dataclass(frozen=True)
class Behaviour:
    """How one chain behaves on the made-up layer.

    Attributes:
        error: relative squared error of the outputs, `Σ (ŵ−w)ᵀ H (ŵ−w) / Σ wᵀ H w`.
        per_weight: bytes that a product makes and drops again, per weight: the decoded weight, above all.
        per_feature: the same per token and per input or output feature, beyond the output itself.
    """

    error: float
    per_weight: float
    per_feature: float


def behaviour(chain: tuple[Method, ...], dtype: torch.dtype) -> Behaviour:
    """Compress a Gaussian `[96, 768]` weight whose inputs are correlated (spectrum 1/k), and run the product on a CPU.

    Nothing here knows the model: the error orders chains, it does not say what a model loses. A fused kernel takes less
    memory than this plain product.

    Raises:
        FeatherweightError: a chain that does not suit such a layer.
    """
    weight, inputs = _layer()
    weight = weight.to(dtype).float()
    statistics = InputStatistics.from_inputs(inputs, KINDS)
    problem = Problem({"layer": weight}, {"layer": Dense(weight.to(dtype))}, statistics, dtype)
    maps: list[Transform] = []
    for step, method in enumerate(chain):
        drawn = method.prepare(problem) if method.prepares else None
        if drawn is not None:
            maps.append(as_stored(drawn, dtype))
            problem, inputs = _mapped(problem, maps[-1]), maps[-1].apply(inputs)
        settings = method.tune(_block(problem, inputs)) if method.tunes else {}
        done = compress_inside(method, replace(problem, settings=settings))["layer"].weight
        problem = replace(problem, current={"layer": done}, step=step + 1)
    packed = problem.current["layer"]
    for transform in reversed(maps):
        packed = Rotated.of(packed, transform, dtype=dtype)
    hessian = statistics.mean_hessian()

    def energy(rows: Tensor) -> float:
        return float(((rows @ hessian) * rows).sum())

    few, many = (_product_bytes(PackedLinear(packed, dtype=dtype), tokens, dtype) for tokens in (FEW, TOKENS + FEW))
    return Behaviour(
        energy(packed.dequantize() - weight) / energy(weight),
        few / weight.numel(),
        max(0.0, many - few) / TOKENS / (OUTPUTS + INPUTS),
    )


def _mapped(problem: Problem, transform: Transform) -> Problem:
    """The same problem for `T x`, of weights that are still dense."""
    assert problem.statistics is not None
    weight = transform.contragredient().apply(problem.weights["layer"])
    return replace(
        problem,
        weights={"layer": weight},
        current={"layer": Dense(weight.to(problem.dtype))},
        statistics=problem.statistics.transformed(transform),
    )


@cache
def _layer() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    basis = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=generator)).Q
    scales = torch.arange(1, INPUTS + 1).rsqrt()
    return weight, torch.randn(TOKENS, INPUTS, generator=generator) * scales @ basis.T


def _block(problem: Problem, inputs: Tensor) -> BlockRun:
    """The layer as a block of its own, in four batches."""
    weight, batches = problem.weights["layer"], inputs.chunk(4)

    def run(batch: int, overrides: Mapping[str, Tensor]) -> Tensor:
        return batches[batch] @ overrides["layer"].T

    statistics = {} if problem.statistics is None else {"layer": problem.statistics}
    reference = [part @ weight.T for part in batches]
    return BlockRun("layer", problem.weights, problem.current, statistics, 4, reference.__getitem__, run)


def _product_bytes(linear: PackedLinear, tokens: int, dtype: torch.dtype) -> int:
    """The most bytes alive during a product, without input, stored tensors and output."""
    x = torch.zeros(tokens, linear.in_features, dtype=dtype)
    live = LiveBytes([x, *linear.buffers()])
    with torch.no_grad(), live:
        output = linear(x)
    return live.peak - output.untyped_storage().nbytes()
