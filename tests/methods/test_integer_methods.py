"""RTN and GPTQ as methods: planned storage, exact reload, the better solver, errors that teach."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Problem
from featherweight.methods.gptq import GPTQ
from featherweight.methods.registry import METHODS, method_from
from featherweight.methods.rtn import RTN
from featherweight.packed.base import empty, from_tensors
from featherweight.packed.dense import Dense
from featherweight.solvers.sweep import sweep
from featherweight.statistics.inputs import InputStatistics


def make(shapes=((24, 80), (8, 80)), dtype=torch.bfloat16, seed=0, x=None):
    generator = torch.Generator().manual_seed(seed)
    width = shapes[0][1]
    if x is None:
        mixing = torch.randn(width, width, generator=generator) / width**0.5 + 0.3
        x = torch.randn(300, width, generator=generator) @ mixing * (torch.rand(width, generator=generator) * 2 + 0.1)
    dense = {f"linear{i}": (torch.randn(*shape, generator=generator) * 0.05).to(dtype) for i, shape in enumerate(shapes)}
    statistics = InputStatistics.from_inputs(x, needs=frozenset({"hessian"}))
    weights = {name: weight.float() for name, weight in dense.items()}
    return Problem(weights, {name: Dense(weight) for name, weight in dense.items()}, statistics, dtype)


def relative_error(weight, values, hessian):
    error = (weight - values).double()
    return float(((error @ hessian.double()) * error).sum() / ((weight.double() @ hessian.double()) * weight).sum())


SETTINGS = [
    {"bits": bits, "group_size": size, "symmetric": symmetric, "scale_dtype": scale}
    for bits in (2, 3, 4, 5, 6, 8)
    for size, symmetric, scale in ((32, False, "float16"), (None, True, "float16"), (16, True, "bfloat16"))
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("kind", "more"), [(RTN, {}), (GPTQ, {}), (GPTQ, {"order": "static"}), (GPTQ, {"order": "dynamic", "fit": "minmax"})]
)
def test_storage_is_what_compress_makes(kind, more, settings, dtype):
    problem = make(dtype=dtype)
    method = kind(**settings, **more)
    for name, compressed in method.compress(problem).items():
        planned = method.storage(problem.current[name].description(), dtype)
        assert compressed.weight.description() == planned
        assert empty(planned).nbytes == compressed.weight.nbytes
        reloaded = from_tensors(planned, compressed.weight.tensors())
        assert torch.equal(reloaded.dequantize(), compressed.weight.dequantize())
        assert relative_error(problem.weights[name], compressed.weight.dequantize(), problem.statistics.mean_hessian()) < 0.5


@pytest.mark.parametrize("order", ["none", "static", "dynamic"])
def test_facts_tell_the_error_of_what_is_stored(order):
    problem = make()
    for name, compressed in GPTQ(bits=3, group_size=16, order=order).compress(problem).items():
        hessian = problem.statistics.mean_hessian()
        measured = relative_error(problem.weights[name], compressed.weight.dequantize(), hessian)
        assert compressed.facts["relative_error"] == pytest.approx(measured, rel=1e-3)
        assert compressed.facts["solver"] == "sweep"
        assert compressed.facts["relative_error"] < compressed.facts["rtn_relative_error"]
        assert (compressed.facts["damping"], compressed.facts["dead_columns"], compressed.facts["cholesky_attempts"]) == (
            0.01,
            0,
            1,
        )


@pytest.mark.parametrize("order", ["none", "dynamic"])
def test_round_to_nearest_is_kept_where_it_is_better(monkeypatch, order):
    def bad(*arguments, **settings):
        solved = sweep(*arguments, **settings)
        solved.decoded[:24] *= 3
        return solved

    monkeypatch.setattr("featherweight.methods.gptq.sweep", bad)
    problem = make()
    method = GPTQ(bits=4, group_size=16, order=order)
    compressed = method.compress(problem)
    assert [compressed[name].facts["solver"] for name in problem.current] == ["rtn", "sweep"]
    first = compressed["linear0"]
    assert first.weight.description() == method.storage(problem.current["linear0"].description(), problem.dtype)
    measured = relative_error(problem.weights["linear0"], first.weight.dequantize(), problem.statistics.mean_hessian())
    assert first.facts["relative_error"] == pytest.approx(measured, rel=1e-3)


def test_stacked_linears_equal_linears_on_their_own():
    problem = make()
    method = GPTQ(bits=4, group_size=16)
    together = method.compress(problem)
    for name in problem.weights:
        alone = Problem({name: problem.weights[name]}, {name: problem.current[name]}, problem.statistics, problem.dtype)
        difference = together[name].weight.dequantize() != method.compress(alone)[name].weight.dequantize()
        assert difference.float().mean() < 0.003


def test_batches_of_calibration_can_be_split():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 80, generator=generator).cumsum(1) * 0.1
    whole = make(x=x)
    parts = [InputStatistics.from_inputs(part, needs=frozenset({"hessian"})) for part in (x[:7], x[7:200], x[200:])]
    split = Problem(whole.weights, whole.current, parts[0] + parts[1] + parts[2], whole.dtype)
    method = GPTQ(bits=4, group_size=16)
    for name, compressed in method.compress(whole).items():
        other = method.compress(split)[name].weight.dequantize()
        assert (compressed.weight.dequantize() != other).float().mean() < 0.01


@pytest.mark.parametrize("order", ["none", "static", "dynamic"])
def test_dead_inputs_are_rounded_to_nearest(order):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 80, generator=generator)
    x[:, [3, 70]] = 0
    problem = make(x=x)
    for name, compressed in GPTQ(bits=8, group_size=16, order=order).compress(problem).items():
        assert compressed.facts["dead_columns"] == 2
        dead = problem.weights[name][:, [3, 70]]
        assert (
            compressed.weight.dequantize()[:, [3, 70]] - dead
        ).norm() < 0.3 * dead.norm()  # beyond its group's range it is clamped


def test_same_seed_same_bytes():
    first, second = (GPTQ(bits=3).compress(make())["linear0"].weight.tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rtn_needs_no_statistics():
    problem = make()
    blind = Problem(problem.weights, problem.current, None, problem.dtype)
    compressed = RTN(bits=8, group_size=-1).compress(blind)["linear0"]
    assert relative_error(problem.weights["linear0"], compressed.weight.dequantize(), torch.eye(80)) < 1e-4
    assert RTN(group_size=-1) == RTN(group_size=None)
    with pytest.raises(FeatherweightError, match="no Hessian for linear0 and linear1"):
        GPTQ().compress(blind)


@pytest.mark.parametrize("kind", [RTN, GPTQ])
def test_groups_that_do_not_divide(kind):
    problem = make()
    assert kind(bits=4, group_size=32).compress(problem)["linear0"].weight.tensors()["scales"].shape == (24, 3)
    strict = kind(bits=4, group_size=32, tails=False)
    with pytest.raises(FeatherweightError) as caught:
        strict.compress(problem)
    for part in ("linear0", "80 inputs", "group_size 32", "remainder 16", "group_size: 16", "tails: true", "null"):
        assert part in str(caught.value)
    with pytest.raises(FeatherweightError):
        strict.storage(problem.current["linear0"].description(), torch.bfloat16)


def test_gptq_refuses_to_bring_weights_back():
    problem = make()
    stored = RTN().compress(problem)["linear0"].weight
    with pytest.raises(FeatherweightError, match="first step"):
        GPTQ().storage(stored.description(), torch.bfloat16)


@pytest.mark.parametrize("settings", [{"bits": 7}, {"bits": 4.5}, {"group_size": 0}, {"fit": "x"}, {"scale_dtype": "int8"}])
def test_bad_settings(settings):
    for kind in (RTN, GPTQ):
        with pytest.raises(FeatherweightError):
            kind(**settings)


def test_bad_settings_of_gptq():
    with pytest.raises(FeatherweightError, match="none, static, dynamic"):
        GPTQ(order="sideways")
    with pytest.raises(FeatherweightError, match="negative"):
        GPTQ(damping=-1.0)


def test_registry():
    assert METHODS["gptq"] is GPTQ and METHODS["rtn"] is RTN
    assert method_from("gptq", {"bits": 3, "order": "static"}) == GPTQ(bits=3, order="static")
    assert len({method_from("rtn", {}), RTN()}) == 1
    with pytest.raises(FeatherweightError, match="did you mean gptq"):
        method_from("gpqt", {})
    with pytest.raises(FeatherweightError, match="did you mean group_size"):
        method_from("rtn", {"groupsize": 128})
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.source
