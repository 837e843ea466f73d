"""QuIP#: the rotations change nothing by themselves, storage as planned, better than GPTQ at fewer bits, errors that teach."""

from dataclasses import replace

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.gptq import GPTQ
from featherweight.methods.incoherence import Incoherence, input_factors
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.quip import QuIP
from featherweight.methods.rtn import RTN
from featherweight.packed.base import from_tensors
from featherweight.packed.dense import Dense
from featherweight.packed.rotated import Rotated
from problems import make, relative_error, run


@pytest.mark.parametrize("settings", [{"bits": 2, "passes": 0}, {"bits": 3}, {"bits": 4}, {"bits": 2, "rescale": True}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_as_planned_and_read_as_made(settings, dtype):
    problem = make(dtype=dtype, shapes=((24, 80), (7, 80)))
    current, facts = run(problem, QuIP(**settings))
    for name, weight in current.items():
        again = from_tensors(weight.description(), weight.tensors())
        assert torch.equal(again.dequantize(), weight.dequantize())
        x = torch.randn(3, 80)
        torch.testing.assert_close(weight.matmul(x), x @ weight.dequantize().T, atol=1e-4, rtol=1e-4)
        assert facts[name]["relative_error"] == pytest.approx(relative_error(
            replace(problem, weights={name: problem.weights[name]}), {name: weight}), rel=0.02)  # fmt: skip
        assert facts[name]["input_rotation"] == "paley1(20)x2^2"
    rotations = 80 // 8 + 24 // 8
    assert current["linear0"].nbytes == 24 * 10 * settings["bits"] + 4 + rotations + (160 if "rescale" in settings else 0)
    assert facts["linear1"]["output_rotation"] == "hartley(7)"


def test_the_basis_keeps_products_and_hides_what_stands_out():
    problem = make(shapes=((24, 84), (20, 84)))
    weights = dict(problem.weights)
    weights["linear0"] = weights["linear0"].clone()
    weights["linear0"][3, 5] = 5.0
    hessian = problem.hessian("quip", "rtn")[0]
    factors = input_factors(hessian, torch.cat(list(weights.values())), torch.float16)
    rows = {name: len(weight) for name, weight in weights.items()}
    for each in (None, factors):
        basis = Incoherence.draw(rows, hessian, each, problem.generator)
        for name, weight in weights.items():
            inside = basis.weight(name, weight)
            energy = ((inside @ basis.hessian) * inside).sum()
            torch.testing.assert_close(energy, ((weight @ hessian) * weight).sum(), rtol=1e-3, atol=0)
            stored = Rotated.of(Dense(inside), basis.input, basis.outputs[name])
            stored = stored if each is None else Rotated.of(stored, each, dtype=torch.float16)
            torch.testing.assert_close(stored.dequantize(), weight, atol=2e-5, rtol=1e-3)
        inside = basis.weight("linear0", weights["linear0"])
        assert float(inside.abs().max() / inside.square().mean().sqrt()) < 6 < float(
            weights["linear0"].abs().max() / weights["linear0"].square().mean().sqrt()
        )  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_than_gptq_at_fewer_bits(bits):
    """On average over seeds; GPTQ with one scale and zero point a row, which take more room than these rotations."""
    ours, theirs = 0.0, 0.0
    for seed in range(3):
        problem = make(shapes=((48, 96),), seed=seed)
        current, facts = run(problem, QuIP(bits))
        other = run(problem, GPTQ(bits, group_size=None))[0]
        assert current["linear0"].nbytes < other["linear0"].nbytes
        assert facts["linear0"]["passes_gain"] >= 0
        ours, theirs = ours + relative_error(problem, current), theirs + relative_error(problem, other)
    assert ours < 0.9 * theirs


def test_balancing_helps_where_inputs_differ():
    problem = make(shapes=((48, 96),), seed=2)
    plain, balanced = (relative_error(problem, run(problem, QuIP(2, rescale=rescale))[0]) for rescale in (False, True))
    assert balanced < 1.2 * plain


def test_one_seed_gives_one_result_and_rotations_of_the_input_are_shared():
    problem = make(shapes=((16, 32), (16, 32)))
    first, again, other = (run(replace(problem, seed=seed), QuIP())[0] for seed in (0, 0, 1))
    assert torch.equal(first["linear0"].dequantize(), again["linear0"].dequantize())
    assert not torch.equal(first["linear0"].tensors()["input_signs"], other["linear0"].tensors()["input_signs"])
    assert torch.equal(first["linear0"].tensors()["input_signs"], first["linear1"].tensors()["input_signs"])
    assert not torch.equal(first["linear0"].tensors()["output_signs"], first["linear1"].tensors()["output_signs"])


def test_zero_weights_stay_zero_and_dead_inputs_do_no_harm():
    problem = make(shapes=((16, 32),))
    statistics = replace(problem.statistics, hessian=problem.statistics.hessian.clone())
    statistics.hessian[:, :4] = statistics.hessian[:4] = 0.0
    dead = replace(problem, statistics=statistics)
    assert relative_error(dead, run(dead, QuIP(4))[0]) < 0.05
    zero = replace(problem, weights={"linear0": torch.zeros(16, 32)}, current={"linear0": Dense(torch.zeros(16, 32))})
    current, facts = run(zero, QuIP())
    assert not current["linear0"].dequantize().any() and facts["linear0"]["relative_error"] == 0.0


def test_a_rotation_after_a_drop_is_refused_and_other_starts_too():
    problem = make(shapes=((16, 32),))
    masked = Magnitude().storage(problem.current["linear0"].description(), problem.dtype)
    with pytest.raises(FeatherweightError, match="dropped weights"):
        QuIP().storage(masked, problem.dtype)
    with pytest.raises(FeatherweightError, match="stored them as integer"):
        QuIP().storage(RTN().storage(problem.current["linear0"].description(), problem.dtype), problem.dtype)
    with pytest.raises(FeatherweightError, match="no Hessian"):
        QuIP().compress(replace(problem, statistics=None))
    for settings in ({"bits": 5}, {"passes": -1}, {"damping": -0.1}, {"rms": 0.0}):
        with pytest.raises(FeatherweightError):
            QuIP(**settings)


def test_a_large_prime_side_is_left_alone():
    planned = QuIP().storage({"kind": "dense", "shape": [50257, 64], "dtype": "float32"}, torch.float32)
    assert planned["output"] is None and planned["input"]["made"] == "2^6"


def test_inside_other_rotations():
    """A step that starts from a rotated dense weight works on what is inside."""
    problem = make(shapes=((16, 32),))
    basis = Incoherence.draw({"linear0": 16}, problem.hessian("quip", "rtn")[0], None, problem.generator)
    held = Rotated.of(Dense(basis.weight("linear0", problem.weights["linear0"])), basis.input, basis.outputs["linear0"])
    inside = replace(problem, current={"linear0": held})
    made = compress_inside(QuIP(4), inside)["linear0"].weight
    assert made.description() == storage_after(QuIP(4), held.description(), problem.dtype)
    assert relative_error(problem, {"linear0": made}) < 0.02
