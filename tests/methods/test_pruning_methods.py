"""Magnitude and SparseGPT as methods, alone, with rounding, and in chains that keep every zero."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from featherweight.errors import FeatherweightError
from featherweight.grids.exact import Exact
from featherweight.masks.patterns import Pattern
from featherweight.methods.alps import ALPS
from featherweight.methods.dropping import Hold, Select, drop_exactly
from featherweight.methods.gptq import GPTQ
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.ria import RIA
from featherweight.methods.rtn import RTN
from featherweight.methods.saliency import Saliency
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.wanda import Wanda
from featherweight.packed.base import from_tensors
from featherweight.packed.files import write
from featherweight.solvers.damping import factorise
from featherweight.solvers.sweep import sweep
from problems import make, relative_error, run

PRUNERS = [
    Magnitude(),
    Magnitude(pattern="row", ratio=0.3),
    Magnitude(pattern="2:4"),
    Wanda(),
    Wanda(pattern="layer", variant=True, ratio=0.4),
    RIA(pattern="2:4"),
    Saliency(),
    SparseGPT(block_size=32),
    SparseGPT(ratio=0.05),
    SparseGPT(pattern="row", block_size=32, ratio=0.7),
    SparseGPT(pattern="2:4"),
    SparseGPT(pattern="1:8"),
]
ROUNDERS = [
    RTN(bits=4, group_size=16),
    RTN(bits=3, group_size=None, symmetric=True),
    GPTQ(bits=4, group_size=16),
    GPTQ(bits=2, group_size=32, order="static", fit="minmax"),
    GPTQ(bits=4, group_size=16, order="dynamic", symmetric=True),
    GPTQ(bits=8, group_size=None, stale_groups=True),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rounder", [None, *ROUNDERS])
def test_chains_store_what_was_planned_and_keep_every_zero(pruner, rounder, dtype, tmp_path):
    problem = make(dtype=dtype)
    current, _ = run(problem, pruner, *([rounder] if rounder else []))
    pruned, _ = run(problem, pruner)
    for name, weight in current.items():
        write(tmp_path / f"{name}.safetensors", weight.tensors())
        reloaded = from_tensors(weight.description(), load_file(tmp_path / f"{name}.safetensors"))
        assert torch.equal(reloaded.dequantize(), weight.dequantize())
        assert not reloaded.dequantize()[~pruned[name].support].any()
        if weight.description()["mask"] != "implied":
            assert int(weight.support.sum()) == weight.description()["kept"]
            assert torch.equal(weight.support, pruned[name].support)


@pytest.mark.parametrize("bits", [None, 2, 4])
@pytest.mark.parametrize("fit_on", ["kept", "dense"])
@pytest.mark.parametrize("group_size", [16, 24, 48, None])
@pytest.mark.parametrize("settings", [{"block_size": 32}, {"pattern": "row", "ratio": 0.25}, {"pattern": "4:8"}])
def test_joint_stores_what_was_planned_and_says_its_error(bits, fit_on, group_size, settings):
    problem = make(dtype=torch.float32)
    method = SparseGPT(bits=bits, group_size=group_size, fit_on=fit_on, **settings)
    current, facts = run(problem, method)
    for name, weight in current.items():
        if bits != 2 or "ratio" not in settings:
            assert int(weight.support.sum()) == weight.description()["kept"]
        assert not weight.dequantize()[~weight.support].any()
        one = relative_error(replace(problem, weights={name: problem.weights[name]}), current)
        assert facts[name]["relative_error"] == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
@pytest.mark.parametrize("bits", [None, 4])
def test_every_group_of_m_keeps_n(pattern, keep, of, bits):
    current, _ = run(make(), SparseGPT(pattern=pattern, bits=bits))
    for weight in current.values():
        assert (weight.support.view(-1, of).sum(1) == keep).all()
        assert ((weight.dequantize() != 0).view(-1, of).sum(1) <= keep).all()


@pytest.mark.parametrize("settings", [{"block_size": 32}, {"pattern": "2:4"}, {"pattern": "row", "block_size": 32}])
def test_with_uncorrelated_inputs_it_is_magnitude_in_blocks(settings):
    problem = make(identity=True)
    current, _ = run(problem, SparseGPT(**settings))
    pattern = Pattern.parse(settings.get("pattern", "layer"))
    for name, weight in problem.weights.items():
        blocks = [torch.where(pattern.dropped(part.abs()), 0.0, part) for part in weight.split(32, 1)]
        assert torch.equal(current[name].dequantize(), torch.cat(blocks, 1))


@pytest.mark.parametrize("seed", range(5))
def test_a_held_mask_gives_the_closed_form_of_optimal_brain_surgeon(seed):
    problem = make(((6, 8),), torch.float32, seed)
    pruned, _ = run(problem, Magnitude(ratio=0.4))
    current, _ = run(replace(problem, current=pruned), SparseGPT(mask_from="current"))
    hessian = problem.statistics.mean_hessian().double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    for row, kept in enumerate(pruned["linear0"].support):
        left = problem.weights["linear0"][row].double()
        for column in (~kept).nonzero()[:, 0].tolist():
            inverse = torch.linalg.inv(damped[column:, column:])
            left[column:] -= left[column].clone() / inverse[0, 0] * inverse[0]
        torch.testing.assert_close(current["linear0"].dequantize()[row], left.float(), atol=1e-5, rtol=1e-4)


def mean_error(*chain, seeds=6):
    problems = [make(((32, 128), (16, 128)), seed=seed) for seed in range(seeds)]
    return sum(relative_error(problem, run(problem, *chain)[0]) for problem in problems) / seeds


def test_sparsegpt_beats_magnitude_and_reconstruction_lies_between():
    ours, plain = mean_error(SparseGPT()), mean_error(Magnitude())
    held = mean_error(Magnitude(), SparseGPT(mask_from="current"))
    assert ours < 0.5 * held < 0.5 * plain
    assert mean_error(SparseGPT(pattern="2:4")) < 0.5 * mean_error(Magnitude(pattern="2:4"))


@pytest.mark.parametrize("settings", [{}, {"pattern": "2:4"}])
def test_joint_beats_pruning_then_rounding(settings):
    joint = mean_error(SparseGPT(group_size=32, bits=4, **settings))
    assert joint < 0.75 * mean_error(SparseGPT(**settings), RTN(group_size=32, fit="weighted"))
    assert joint < mean_error(SparseGPT(**settings), GPTQ(group_size=32))
    assert joint < 0.95 * mean_error(SparseGPT(group_size=32, bits=4, fit_on="dense", **settings))


def test_stored_rounding_is_made_up_for():
    problem = make()
    current, _ = run(problem, SparseGPT())
    exact, _ = run(replace(problem, dtype=torch.float32), SparseGPT())
    assert relative_error(problem, current) == pytest.approx(relative_error(problem, exact), rel=0.01)


def test_linears_of_one_input_do_not_compete():
    problem = make()
    problem = replace(problem, weights={**problem.weights, "linear1": 100 * problem.weights["linear1"]})
    current, _ = run(problem, SparseGPT(block_size=16))
    for name, weight in problem.weights.items():
        alone, _ = run(
            replace(problem, weights={name: weight}, current={name: problem.current[name]}), SparseGPT(block_size=16)
        )
        assert (alone[name].support != current[name].support).float().mean() < 0.003
        assert (current[name].support.split(16, 1)[0].sum()) == weight.shape[0] * 8


class Recorded(Select):
    """Remembers what each group's fit expected."""

    def expected(self, first, values, importance):
        self.seen = [*getattr(self, "seen", []), (first, super().expected(first, values, importance).clone())]
        return self.seen[-1][1]


@pytest.mark.parametrize(("group_size", "exact"), [(32, True), (96, False), (16, False), (None, False)])
def test_a_fit_expects_what_is_then_dropped(group_size, exact):
    problem = make(((24, 96),), torch.float32)
    factor = factorise(problem.statistics.mean_hessian())
    decision = Recorded(Pattern.parse("layer"), 32, [24], 96, torch.device("cpu"), feedback=factor.feedback())
    sweep(problem.weights["linear0"], factor, RTN().grid_over(), group_size, decision=decision)
    for first, expected in decision.seen:
        same = (expected == decision.dropped[first : first + len(expected)]).float().mean()
        assert same == 1 if exact else same > 0.8


def test_the_expected_values_are_those_of_a_walk_without_rounding():
    problem = make(((24, 80),), torch.float32)
    weight, factor = problem.weights["linear0"], factorise(problem.statistics.mean_hessian())
    dropped = Pattern.parse("row").dropped(weight.abs()).T
    expected = drop_exactly(weight.T, dropped, factor.feedback())
    walked = sweep(weight, factor, Exact(torch.float32), decision=Hold(dropped)).decoded
    torch.testing.assert_close(expected.T, walked, atol=1e-5, rtol=1e-4)


def test_dead_inputs_become_zero():
    problem = make()
    hessian = problem.statistics.hessian.clone()
    hessian[[3, 70]] = 0
    hessian[:, [3, 70]] = 0
    problem = replace(problem, statistics=replace(problem.statistics, hessian=hessian))
    for bits in (None, 4):
        current, facts = run(problem, SparseGPT(bits=bits))
        for name, weight in current.items():
            assert not weight.dequantize()[:, [3, 70]].any() and facts[name]["dead_columns"] == 2
            assert not weight.support[:, [3, 70]].any()  # what costs nothing goes first


def test_magnitude_prunes_rounded_weights_too():
    problem = make()
    current, _ = run(problem, RTN(bits=4, group_size=16), Magnitude(pattern="2:4"))
    rounded, _ = run(problem, RTN(bits=4, group_size=16))
    for name, weight in current.items():
        assert torch.equal(weight.dequantize(), torch.where(weight.support, rounded[name].dequantize(), 0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, "less than 1"),
        ({"pattern": "half"}, "quotes included"),
        ({"pattern": "layer"}, "use pattern: block"),
        ({"pattern": "1:4", "ratio": 0.5}, "contradict"),
        ({"pattern": "2:5"}, "block_size 128, remainder 3"),
        ({"pattern": "4:32", "bits": 4, "group_size": 16}, "use group_size: 32"),
        ({"bits": 7}, "sparsegpt cannot store these bits"),
        ({"bits": 4, "group_size": 0}, "sparsegpt cannot form"),
        ({"bits": 4, "fit": "best"}, "unknown way to fit"),
        ({"fit_on": "all"}, "kept, dense"),
        ({"mask_from": "before"}, "unknown mask_from"),
        ({"damping": -1}, "damping is negative"),
        ({"block_size": 0}, "block_size: 128"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(FeatherweightError, match=message):
        SparseGPT(**settings)


def test_chains_that_make_no_sense_are_refused_in_the_plan():
    problem = make()
    masked = run(problem, Magnitude())[0]["linear0"].description()
    integer = run(problem, RTN())[0]["linear0"].description()
    dense = problem.current["linear0"].description()
    refused = [
        (SparseGPT(), masked, "set mask_from: current"),
        (SparseGPT(mask_from="current"), dense, "let a step before it prune"),
        (SparseGPT(), integer, "make sparsegpt the first step"),
        (Magnitude(), masked, "one step that prunes"),
        (GPTQ(), run(problem, Magnitude(), RTN())[0]["linear0"].description(), "stored them as integer"),
        (SparseGPT(pattern="4:32"), dense, "80 inputs, remainder 16"),
        (Magnitude(pattern="2:7"), dense, "80 inputs, remainder 3"),
    ]
    for method, current, message in refused:
        with pytest.raises(FeatherweightError, match=message):
            method.storage(current, torch.bfloat16)
    with pytest.raises(FeatherweightError, match="linear0"):
        Magnitude(pattern="2:7").compress(problem)
    with pytest.raises(FeatherweightError, match="no Hessian for linear0 and linear1"):
        SparseGPT().compress(replace(problem, statistics=None))


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4"])
def test_alps_drops_as_planned_and_errs_less_than_sparsegpt(pattern):
    problem = make()
    current, facts = run(problem, ALPS(pattern=pattern))
    walked, _ = run(problem, SparseGPT(pattern="block" if pattern == "layer" else pattern))
    refitted, _ = run(problem, SparseGPT(pattern="block" if pattern == "layer" else pattern, refit=20))
    assert relative_error(problem, current) < relative_error(problem, refitted) < 0.95 * relative_error(problem, walked)
    assert all(fact["solver"] == "admm" and fact["iterations"] > 2 for fact in facts.values())


def test_alps_then_gptq_keeps_every_zero_and_beats_the_joint_walk():
    problem = make(shapes=((48, 128), (16, 128)))
    rounded, _ = run(problem, ALPS(), GPTQ(bits=4, group_size=32))
    joint, _ = run(problem, SparseGPT(bits=4, group_size=32))
    assert relative_error(problem, rounded) < relative_error(problem, joint)
    assert sum(weight.nbytes for weight in rounded.values()) == sum(weight.nbytes for weight in joint.values())


def test_a_refit_of_a_given_mask_only_lowers_the_error():
    problem = make()
    held, _ = run(problem, Magnitude(), SparseGPT(mask_from="current"))
    refitted, _ = run(problem, Magnitude(), SparseGPT(mask_from="current", refit=20))
    assert relative_error(problem, refitted) < relative_error(problem, held)
    assert all(torch.equal(held[name].support, refitted[name].support) for name in held)
    with pytest.raises(FeatherweightError, match="add a second step"):
        SparseGPT(bits=4, refit=5)


def test_alps_with_an_input_that_was_never_active():
    problem = make()
    statistics = problem.statistics
    hessian = statistics.hessian.clone()
    hessian[3] = hessian[:, 3] = 0
    problem = replace(problem, statistics=replace(statistics, hessian=hessian, sum_sq=hessian.diagonal().clone()))
    current, facts = run(problem, ALPS())
    assert all(not weight.dequantize()[:, 3].any() for weight in current.values())
    assert all(fact["dead_columns"] == 1 for fact in facts.values())
