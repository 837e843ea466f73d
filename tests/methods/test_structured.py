"""Structured pruning of single linears, alone and in chains, against masks and least squares."""

from dataclasses import replace

import pytest
import torch

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.methods.base import Problem
from featherweight.methods.gptq import GPTQ
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.methods.rtn import RTN
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.structured import Structured
from featherweight.packed.base import empty
from featherweight.packed.dense import Dense
from featherweight.statistics.inputs import InputStatistics


def make(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 64, generator=generator) @ (torch.randn(64, 64, generator=generator) / 8 + 0.3)
    weights = {f"linear{i}": torch.randn(rows, 64, generator=generator) * 0.1 for i, rows in enumerate((24, 8))}
    weights = {name: weight.to(dtype).float() for name, weight in weights.items()}
    statistics = InputStatistics.from_inputs(x, needs=frozenset({"hessian"}))
    return Problem(weights, {name: Dense(weight.to(dtype)) for name, weight in weights.items()}, statistics, dtype)


def run(problem, *chain):
    """Packed weights after a chain, each as planned."""
    for method in chain:
        after = {}
        for name, compressed in compress_inside(method, problem).items():
            planned = storage_after(method, problem.current[name].description(), problem.dtype)
            assert compressed.weight.description() == planned and empty(planned).nbytes == compressed.weight.nbytes
            after[name] = compressed.weight
        problem = replace(problem, current=after)
    return problem.current


@pytest.mark.parametrize("dimension", ["input", "output"])
@pytest.mark.parametrize("before", [(), (RTN(bits=8, group_size=16),), (GPTQ(bits=4, group_size=None),)], ids=str)
def test_shrunk_equals_masked(dimension, before):
    problem = make()
    whole = run(problem, *before)
    sliced = run(problem, *before, Structured(ratio=0.3, dimension=dimension))
    side = 0 if dimension == "output" else 1
    for name, weight in sliced.items():
        values = whole[name].dequantize()
        norms = values.abs().sum(1 - side)
        kept = torch.zeros_like(norms, dtype=torch.bool)
        kept[norms.argsort(descending=True)[: len(norms) - int(len(norms) * 0.3)]] = True
        masked = values * (kept[:, None] if side == 0 else kept)
        assert torch.equal(weight.dequantize(), masked)
        assert weight.inner.shape[side] == int(kept.sum())
        assert weight.nbytes < whole[name].nbytes or len(values) == 8  # an index of 16 bits an input outweighs 8 rows
        x = torch.randn(3, 64)
        torch.testing.assert_close(weight.matmul(x), x @ masked.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("later", [RTN(bits=4, group_size=16), GPTQ(bits=4, group_size=16), SparseGPT(pattern="2:4")], ids=str)
def test_later_steps_see_what_is_left(later):
    problem = make()
    current = run(problem, Structured(ratio=0.25), later)
    first = run(problem, Structured(ratio=0.25))
    for name, weight in current.items():
        assert weight.kind == "sliced" and not weight.dequantize()[~first[name].support].any()
        inside = replace(
            problem,
            weights={name: first[name].inner.dequantize()},
            current={name: first[name].inner},
            statistics=problem.statistics.take(first[name].kept(1)),
        )
        alone = later.compress(inside)[name].weight
        assert torch.equal(weight.inner.dequantize(), alone.dequantize())


def test_the_repair_is_least_squares():
    problem = make()
    repaired = run(problem, Structured(ratio=0.3, repair=True, damping=0.0))
    plain = run(problem, Structured(ratio=0.3))
    hessian = problem.statistics.mean_hessian().double()
    for name, weight in repaired.items():
        kept = weight.kept(1)
        assert torch.equal(kept, plain[name].kept(1))
        best = problem.weights[name].double() @ hessian[:, kept] @ torch.linalg.inv(hessian[kept][:, kept])
        torch.testing.assert_close(weight.inner.dequantize().double(), best, atol=1e-4, rtol=1e-3)


def test_activations_can_decide():
    problem = make()
    loud = problem.statistics.hessian.clone()
    loud[5] *= 100
    loud[:, 5] *= 100
    problem = replace(problem, statistics=replace(problem.statistics, hessian=loud, sum_sq=loud.diagonal().clone()))
    quiet = {name: weight.index_fill(1, torch.tensor([5]), 1e-3) for name, weight in problem.weights.items()}
    problem = replace(problem, weights=quiet, current={name: Dense(weight) for name, weight in quiet.items()})
    assert all(5 not in weight.kept(1) for weight in run(problem, Structured()).values())
    assert all(5 in weight.kept(1) for weight in run(problem, Structured(ratio=0.5, score="activation")).values())


def test_statistics_are_asked_for_only_where_they_are_used():
    assert Structured().requires == frozenset() and Structured(repair=True).requires == {"hessian"}
    assert Structured(score="activation").requires == {"sum_sq"}
    plan = fw.plan("demo", {"name": "x", "steps": [{"method": "structured"}]})
    assert not plan.needs_data


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"ratio": 1.0}, "empty"), ({"dimension": "both"}, "dimension"), ({"dimension": "output", "repair": True}, "repair")],
)
def test_wrong_settings(settings, says):
    with pytest.raises(FeatherweightError, match=says):
        Structured(**settings)
    with pytest.raises(FeatherweightError, match="first step"):
        Structured().storage({"kind": "masked", "shape": [4, 8]}, torch.float32)


def test_a_model_is_compressed_saved_and_proved(tmp_path):
    steps = [{"method": "structured", "ratio": 0.2}, {"method": "gptq", "bits": 4, "group_size": 64}]
    recipe = {"name": "x", "steps": steps, "calibration": {"samples": 2, "length": 64}}
    result = fw.compress(fw.plan("demo", recipe), tmp_path / "out")
    assert result.proof["largest_difference"] <= result.proof["bound"]
    rows = [row for row in result.rows if row.chain]
    assert rows and all(row.measured["stored_bytes"] == row.predicted_bytes for row in rows)
    assert all(row.measured["sparsity"] > 0.15 for row in rows)
