"""AWQ and SmoothQuant: the factors of their equations, the promise of the search, what is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from common import TINY
from featherweight.errors import FeatherweightError
from featherweight.methods.awq import AWQ, scale_by_size
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.registry import method_from
from featherweight.methods.rtn import RTN
from featherweight.methods.smoothquant import SmoothQuant
from featherweight.packed.dense import Dense
from featherweight.statistics.inputs import InputStatistics
from problems import make, relative_error, run

NEEDS = frozenset({"hessian", "abs_max"})


def uneven(dead=()):
    """A problem with a few inputs far larger than the others, and some that are never active."""
    problem = make(((24, 64), (8, 64)), torch.float32)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 64, generator=generator) * torch.rand(64, generator=generator).pow(6).add(0.01) * 10
    x[:, list(dead)] = 0
    return replace(problem, statistics=InputStatistics.from_inputs(x, NEEDS)), x


def scaled(problem, diagonal):
    """As the engine hands it on: `x` times the factors, weights divided by them."""
    factors = diagonal.values.float()
    weights = {name: weight / factors for name, weight in problem.weights.items()}
    hessian = problem.statistics.hessian * torch.outer(factors, factors)
    statistics = InputStatistics(problem.statistics.count, hessian.diagonal().clone(), hessian)
    current = {name: Dense(current.dequantize() / factors) for name, current in problem.current.items()}
    return replace(problem, weights=weights, current=current, statistics=statistics)


@pytest.mark.parametrize("settings", [{"bits": 3, "group_size": 16}, {"bits": 4, "group_size": None}, {"grid": "nvfp4"}])
def test_awq_finds_the_best_of_its_candidates(settings):
    problem, x = uneven()
    method, rounding = method_from("awq", settings), method_from("rtn", settings)
    factors = method.prepare(problem).values

    def error(scale):
        total = 0.0
        for weight in problem.weights.values():
            dense = Dense(weight * scale)
            one = replace(problem, weights={"a": weight}, current={"a": dense})
            rounded = rounding.compress(one)["a"].weight.dequantize() / scale
            total += float((x @ (rounded - weight).T).double().square().sum())
        return total

    tried = [scale_by_size(x.square().mean(0).sqrt(), step / 20) for step in range(20)]
    errors = [error(scale) for scale in tried]
    best = min(range(20), key=lambda step: errors[step])
    assert best > 0 and torch.allclose(factors, 1 / tried[best], rtol=1e-4)
    before, after = run(problem, rounding)[0], run(scaled(problem, method.prepare(problem)), method, rounding)[0]
    assert relative_error(scaled(problem, method.prepare(problem)), after) < 0.8 * relative_error(problem, before)


def test_scales_are_the_authors():
    size = torch.tensor([1.0, 4.0, 0.0, 16.0])
    assert scale_by_size(size, 0.5).tolist() == [0.5, 1.0, 1.0, 2.0]  # √a / √(4 · 1); a dead input keeps 1
    assert scale_by_size(size, 0.0).tolist() == [1.0] * 4
    assert scale_by_size(torch.zeros(3), 0.5).tolist() == [1.0] * 3


def test_nothing_is_scaled_where_that_does_not_help():
    problem = make(((24, 64),), torch.float32, identity=True)
    assert AWQ(bits=3, group_size=16).prepare(problem) is None


def test_dead_inputs_keep_their_factor():
    problem, _ = uneven(dead=(5, 6))
    for method in (AWQ(bits=3, group_size=16), SmoothQuant()):
        factors = method.prepare(problem).values
        assert factors[[5, 6]].tolist() == [1.0, 1.0] and torch.isfinite(factors).all() and (factors > 0).all()


def test_smoothquant_shares_the_range_between_inputs_and_weights():
    problem, x = uneven()
    weights = torch.cat(list(problem.weights.values())).abs().amax(0)
    half = SmoothQuant().prepare(problem).values
    torch.testing.assert_close(x.abs().amax(0) * half, weights / half)
    torch.testing.assert_close(SmoothQuant(alpha=0.8).prepare(problem).values, weights**0.2 / x.abs().amax(0) ** 0.8)
    assert torch.allclose(SmoothQuant(alpha=1.0).prepare(problem).values * x.abs().amax(0), torch.ones(64))


@pytest.mark.parametrize("method", [AWQ(bits=4, group_size=16), SmoothQuant()])
def test_dropped_weights_stay_and_storage_does_not_change(method):
    problem, _ = uneven()
    pruned, _ = run(problem, Magnitude())
    after, _ = run(replace(problem, current=pruned), method)
    assert all(after[name] is pruned[name] for name in pruned)
    assert torch.isfinite(method.prepare(replace(problem, current=pruned)).values).all()


@pytest.mark.parametrize("settings", [{"bits": 3, "group_size": 16}, {"bits": 4, "group_size": None}, {"grid": "fp4"}])
@pytest.mark.parametrize("chain", [[], [Magnitude()]])
def test_clipping_lowers_the_error_of_what_follows(settings, chain):
    problem = make(((24, 64), (8, 64)), torch.float32)
    statistics = problem.statistics
    hessian = torch.block_diag(*(statistics.hessian[i : i + 16, i : i + 16] for i in range(0, 64, 16)))
    if settings.get("group_size", 16) == 16:
        statistics = replace(statistics, hessian=hessian)
    problem = replace(problem, statistics=statistics)
    method, rounding = method_from("awq", {**settings, "clip": True}), method_from("rtn", settings)
    if settings.get("grid") == "fp4":
        method, rounding = (method_from(name, {**settings, "group_size": 16, **more}) for name, more in (
            ("awq", {"clip": True}), ("rtn", {})))  # fmt: skip
    pruned, _ = run(problem, *chain) if chain else (problem.current, {})
    plain = run(replace(problem, current=pruned), rounding)[0]
    clipped, facts = run(replace(problem, current=pruned), method)
    after = run(replace(problem, current=clipped), rounding)[0]
    target = replace(problem, weights={name: weight.dequantize() for name, weight in pruned.items()})
    assert relative_error(target, after) < 0.97 * relative_error(target, plain)
    assert all(0 < fact["clipped"] < 0.5 for fact in facts.values())


def test_what_cannot_be_scaled_is_refused():
    problem, _ = uneven()
    for method in (AWQ(), SmoothQuant()):
        with pytest.raises(FeatherweightError, match="calibration"):
            method.prepare(replace(problem, statistics=None))
        bad = {name: Dense(torch.full_like(weight, torch.nan)) for name, weight in problem.weights.items()}
        with pytest.raises(FeatherweightError, match="not finite"):
            method.prepare(replace(problem, current=bad))
    with pytest.raises(FeatherweightError, match="0 to 1"):
        SmoothQuant(alpha=1.5)
    with pytest.raises(FeatherweightError, match="bits: 4"):
        AWQ(bits=7)
    assert not RTN().prepares and AWQ().prepares and SmoothQuant().prepares


@pytest.mark.parametrize("step", [{"method": "smoothquant"}, {"method": "awq", "bits": 3, "group_size": 32}])
def test_scaling_alone_leaves_the_model_what_it_was(step, tmp_path):
    result = fw.compress(fw.plan("demo", {"steps": [step]}, changes=TINY), tmp_path / "out")
    assert result.proof["identical"]
    divergence = fw.evaluate(tmp_path / "out", against="demo", length=64, windows=2)[0]
    assert divergence.name == "kl" and divergence.value < 1e-4
    moved = load_file(next((tmp_path / "out").glob("model-*.safetensors")))
    assert any(name.endswith("layernorm.weight") for name in moved)


def test_zeros_stay_when_smoothing_follows_pruning(tmp_path):
    steps = [{"method": "wanda", "ratio": 0.5}, {"method": "smoothquant"}, {"method": "rtn", "bits": 8, "symmetric": True}]
    result = fw.compress(fw.plan("demo", {"steps": steps}, changes=TINY), tmp_path / "out")
    for row in (row for row in result.rows if row.chain):
        assert row.description["kind"] == "masked" and row.measured["sparsity"] >= 0.5
