"""Pruning by score: each method's mask, its errors, and updates in a second step."""

from dataclasses import replace

import pytest
import torch

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.methods.bawa import BaWA
from featherweight.methods.jsq import JSQ
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.registry import METHODS
from featherweight.methods.ria import RIA
from featherweight.methods.saliency import Saliency
from featherweight.methods.scored import Scored
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.wanda import Wanda
from featherweight.solvers.allocation import PACKED_TOGETHER
from problems import block_run, make, relative_error, run

SCORED = [method for method in METHODS.values() if issubclass(method, Scored) and not method().tunes]


def mean_error(*chain, seeds=6):
    problems = [make(((32, 128), (16, 128)), seed=seed) for seed in range(seeds)]
    return sum(relative_error(problem, run(problem, *chain)[0]) for problem in problems) / seeds


def test_with_equal_inputs_wanda_is_magnitude_and_saliency_too():
    problem = make(identity=True)
    for method in (Wanda(ratio=0.3), Saliency(ratio=0.3, pattern="row", damping=0)):
        current, _ = run(problem, method)
        plain, _ = run(problem, Magnitude(ratio=0.3, pattern="row"))
        assert all(torch.equal(current[name].support, plain[name].support) for name in plain)


def test_saliency_is_the_loss_after_the_others_made_up_for_it():
    problem = make(((3, 6),), torch.float32)
    hessian = problem.statistics.mean_hessian().double()
    scores = Saliency(damping=0).score("linear0", problem.weights["linear0"], problem)
    for row, weight in enumerate(problem.weights["linear0"].double()):
        for column in range(6):
            others = [index for index in range(6) if index != column]
            inner = torch.linalg.solve(hessian[others][:, others], hessian[others, column])
            loss = weight[column] ** 2 * (hessian[column, column] - hessian[others, column] @ inner)
            assert float(scores[row, column]) == pytest.approx(float(loss), rel=1e-3)


def test_scores_that_see_activations_beat_magnitude_and_updates_beat_the_scores():
    plain = mean_error(Magnitude(pattern="row"))
    for method in (Wanda(), RIA(pattern="row")):
        alone, updated = mean_error(method), mean_error(method, SparseGPT(mask_from="current"))
        refitted = mean_error(method, SparseGPT(mask_from="current", refit=20))
        assert alone < plain and refitted < updated < 0.7 * alone


@pytest.mark.parametrize("kind", SCORED)
def test_every_score_is_finite_where_nothing_was_ever_active(kind):
    problem = make()
    hessian = problem.statistics.hessian.clone()
    hessian[3] = hessian[:, 3] = 0
    problem = replace(problem, statistics=replace(problem.statistics, hessian=hessian, sum_sq=hessian.diagonal().clone()))
    current, _ = run(problem, kind())
    for weight in current.values():
        assert kind in (Magnitude, JSQ) or not weight.dequantize()[:, 3].any()
        assert int((~weight.support).sum()) == weight.shape[0] * weight.shape[1] // 2


def test_jsq_without_its_sensitivity_is_wanda_on_its_samples_and_clips_only_the_largest():
    problem = make(((16, 40),), torch.float32)
    samples = problem.statistics.samples
    same = replace(problem, statistics=replace(problem.statistics, sum_sq=samples.square().sum((0, 1)), count=samples.shape[1]))
    plain, _ = run(same, Wanda())
    unclipped, _ = run(same, JSQ(sensitivity=0, clip=0))
    assert torch.equal(plain["linear0"].support, unclipped["linear0"].support)
    once, much = (run(problem, JSQ(sensitivity=0, clip=clip))[0]["linear0"].support for clip in (1 / samples.numel(), 0.3))
    assert torch.equal(once, unclipped["linear0"].support) and not torch.equal(much, once)


def test_errors():
    with pytest.raises(FeatherweightError, match=r"2.1 and 0.01"):
        JSQ(clip=1.0)
    for settings, message in (({"variant": True}, "use pattern: layer"), ({"ratio": 1.5}, "less than 1")):
        with pytest.raises(FeatherweightError, match=message):
            Wanda(**settings)
    with pytest.raises(FeatherweightError, match="use power"):
        RIA(power=-1)
    with pytest.raises(FeatherweightError, match="use damping"):
        Saliency(damping=-1)
    with pytest.raises(FeatherweightError, match="activation norms for linear0 and linear1"):
        Wanda().compress(replace(make(), statistics=None))


def test_the_variant_keeps_the_same_total():
    problem = make()
    same, _ = run(problem, Wanda(ratio=0.4))
    varied, _ = run(problem, Wanda(ratio=0.4, pattern="layer", variant=True))
    for name, weight in problem.weights.items():
        assert Pattern.parse("layer", 0.4).kept(weight.shape) == int(varied[name].support.sum())
        assert len(set(varied[name].support.sum(1).tolist())) > 1 == len(set(same[name].support.sum(1).tolist()))


@pytest.mark.parametrize("method", [Magnitude(pattern="block", ratio=0.3), Wanda(pattern="block"), RIA(pattern="block")])
def test_where_a_block_competes_the_smallest_of_all_go(method):
    problem, _, block = block_run()
    found = method.compress(replace(problem, settings=method.tune(block)))
    kept = {name: each.weight.support for name, each in found.items()}
    dropped = sum(int((~each).sum()) for each in kept.values())
    assert dropped == 2 * int(24 * 32 * method._pattern().ratio)
    scores = {name: method.score(name, weight, problem) for name, weight in problem.weights.items()}
    ordered = torch.cat([each.flatten() for each in scores.values()]).sort().values
    spared = sum(int((scores[name][kept[name]] < ordered[dropped]).sum()) for name in kept)
    assert spared < PACKED_TOGETHER  # so many move, for whole bytes


def test_a_block_competes_without_data_and_through_the_engine(tmp_path):
    steps = [{"method": "magnitude", "pattern": "block"}, {"method": "rtn", "bits": 3}]
    plan = fw.plan("demo", {"steps": steps})
    result = fw.compress(plan, tmp_path / "out")
    for block in plan.structure.blocks:
        rows = [row for row in result.rows if row.block == block and row.chain]
        assert sum(row.bytes for row in rows) == sum(row.predicted_bytes for row in rows)
        assert len({round(row.measured["ratio"], 3) for row in rows}) > 1


def test_who_cannot_let_a_block_compete():
    for method in (lambda: BaWA(pattern="block"), lambda: JSQ(pattern="block", clip=None)):
        with pytest.raises(FeatherweightError, match="pattern: layer"):
            method()
    assert JSQ(pattern="block").tunes
