"""Weights that are still dense, and signs, trained on a block's outputs while it is rounded."""

from dataclasses import replace

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.block_run import BlockRun
from featherweight.methods.block_tuning import _Rounded
from featherweight.methods.caldera import CALDERA
from featherweight.methods.quip import QuIP
from featherweight.packed.base import described_bytes
from featherweight.packed.dense import Dense
from featherweight.packed.signs import sign_vectors
from featherweight.statistics.inputs import InputStatistics
from problems import make

METHODS = [
    QuIP(passes=0, tune_block=48, tune_signs=True),
    QuIP(passes=0, rescale=True, tune_block=48, tune_signs=True),
    QuIP(passes=0, tune_block=48),
    CALDERA(rank=2, iterations=1, tune_block=48, tune_signs=True),
]


NORM = "block.norm.weight"


def two_layers(batches: int = 6, broken: bool = False) -> BlockRun:
    """`relu((x ⊙ n) Aᵀ) Bᵀ` stands for a block: what rounding `A` gets wrong, `B` can make up for while it is dense, and `n`."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(48, 32, generator=generator) * 0.2, torch.randn(24, 48, generator=generator) * 0.2
    x = torch.randn(batches, 64, 32, generator=generator) * (torch.rand(32, generator=generator) + 0.2)
    inside = torch.relu(x @ first.T)
    needs = frozenset({"hessian"})
    statistics = {
        "up": InputStatistics.from_inputs(x.flatten(0, 1), needs), "down": InputStatistics.from_inputs(inside.flatten(0, 1), needs),
    }  # fmt: skip
    weights, norm = {"up": first, "down": second}, torch.ones(32, dtype=torch.bfloat16)

    def forward(batch, overrides):
        used = {**weights, **overrides}
        if broken:
            used = {name: weight.detach() for name, weight in used.items()}
        return torch.relu((x[batch] * used.get(NORM, norm)) @ used["up"].T) @ used["down"].T

    current = {name: Dense(weight) for name, weight in weights.items()}
    dense = [each @ second.T for each in inside]
    return BlockRun("block", weights, current, statistics, batches, dense.__getitem__, forward, norms={NORM: norm})


def values(found):
    return {name: each.float() if name == NORM else each.weight.dequantize() for name, each in found.items()}


@pytest.mark.parametrize("method", METHODS, ids=["quip", "rescaled", "bits as before", "caldera"])
def test_tuning_lowers_the_error_of_the_block_and_is_stored_as_planned(method):
    run = two_layers()
    found = method.tune(run)
    untuned = run.mean_loss(values(plain(method, run)))
    tuned = run.mean_loss(values(found))
    assert tuned < (0.9 if method.tune_signs else 0.95) * untuned
    trained = found.pop(NORM)
    assert trained.dtype == torch.bfloat16 and bool((trained != 1).any()), "as it is stored"
    for name, each in found.items():
        assert each.weight.description() == method.storage(run.current[name].description(), torch.float32)
        assert each.weight.nbytes == described_bytes(each.weight.description())
        assert each.facts["tuning_gain"] > 0 and each.facts["block_loss"] < 1.2 * tuned
        vectors = [each.weight.tensors()[vector] for vector in sign_vectors(each.weight.description())]
        assert any(bool((vector.abs() != 1).any()) for vector in vectors) == method.tune_signs
    solved = replace(make(), weights=run.weights, current=run.current, settings=found)
    assert method.compress(solved)["up"].weight is found["up"].weight


def plain(method, run):
    """Each linear rounded by itself."""
    alone = replace(method, tune_block=0)
    found = {}
    for name in run.current:
        problem = replace(
            make(), weights={name: run.weights[name]}, current={name: run.current[name]}, statistics=run.statistics[name],
            dtype=torch.float32,
        )  # fmt: skip
        found |= alone.compress(problem)
    return found


def test_a_rounded_weight_is_its_middle_between_vectors():
    run = two_layers()
    packed = plain(METHODS[1], run)["up"].weight
    rounded = _Rounded.of(packed, ("input", "output"))
    torch.testing.assert_close(rounded.values(), packed.dequantize())
    with torch.no_grad():
        for each in rounded.vectors.values():
            each.mul_(1 + 0.25 * torch.rand(each.shape)).copy_(each.half().float())
    torch.testing.assert_close(rounded.stored().dequantize(), rounded.values().detach(), rtol=1e-4, atol=1e-5)


def test_without_data_to_tune_on_it_is_refused_or_says_so():
    with pytest.raises(FeatherweightError, match="learns from gradients"):
        METHODS[0].tune(two_layers(broken=True))
    with pytest.raises(FeatherweightError, match="tune_block"):
        QuIP(tune_block=-1)
    with pytest.raises(FeatherweightError, match="hadamard"):
        CALDERA(hadamard=False, tune_block=4)
    with pytest.raises(FeatherweightError, match="dense"):
        METHODS[0].tune(replace(two_layers(), current={"up": plain(METHODS[0], two_layers())["up"].weight}))
