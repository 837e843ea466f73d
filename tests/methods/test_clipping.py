"""Learned clipping: what the rounding is and where its gradients go; losses that never rise; masks, walks and BESA's joint form."""

from dataclasses import replace

import pytest
import torch

import featherweight as fw
from common import TINY
from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import UniformGrid
from featherweight.methods.besa import BESA
from featherweight.methods.clipping import Clip
from featherweight.methods.rtn import RTN
from featherweight.methods.wanda import Wanda
from featherweight.solvers.clipping import Ranges
from problems import block_run, make, relative_error, run


@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"group_size": None}, {"bits": 2, "group_size": 24}])
def test_what_is_learned_on_is_what_is_stored(settings):
    method = Clip(**{"bits": 3, "group_size": 16, **settings})
    problem = make()
    ranges = method.ranges(problem.weights["linear0"])
    logits = torch.linspace(-1, 5, ranges.start().numel()).view_as(ranges.start())
    solved, stored = ranges.solve(logits), method.pack(ranges.solve(logits), slice(None), method.integers())
    assert torch.equal(stored.dequantize(), ranges.rounded(logits)) and torch.equal(stored.dequantize(), solved.decoded)
    plain = run(problem, RTN(bits=method.bits, group_size=method.group_size, symmetric=method.symmetric))[0]
    assert torch.equal(ranges.solve(None).decoded, plain["linear0"].dequantize())


def test_gradients_by_hand():
    weight = torch.tensor([[-3.0, -2.9, 0.0, 0.7, 4.0]])
    ranges = Ranges.of(weight, UniformGrid(3, scale_dtype=torch.float32), None)
    logits = torch.tensor([1.0, 2.0]).view(2, 1, 1).requires_grad_()
    high, low = 4 * torch.sigmoid(torch.tensor(1.0)), -3 * torch.sigmoid(torch.tensor(2.0))
    scale, slope = (high - low) / 7, torch.tensor([0.0, 0.0])
    assert float(ranges.rounded(logits.detach())[0, 4]) < 3.2  # clipped
    slope[0] = 4 * torch.sigmoid(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(-1.0))
    slope[1] = -3 * torch.sigmoid(torch.tensor(2.0)) * torch.sigmoid(torch.tensor(-2.0))
    inside = torch.round(weight[0, 3] / scale) - weight[0, 3] / scale
    expected = {4: (slope[0], 0.0), 0: (0.0, slope[1]), 3: (inside * slope[0] / 7, -inside * slope[1] / 7), 2: (0.0, 0.0)}
    for column, (above, below) in expected.items():
        (found,) = torch.autograd.grad(ranges.rounded(logits)[0, column], logits)
        torch.testing.assert_close(found.flatten(), torch.tensor([float(above), float(below)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chain", [(), (Wanda(),)])
def test_the_blocks_loss_never_rises_and_zeros_stay(chain):
    problem, current, block = block_run(*chain)
    method = Clip(bits=2, group_size=16, epochs=15, learning_rate=0.1)
    tuned = method.tune(block)
    found = method.compress(replace(problem, current=current, settings=tuned))
    facts = tuned["linear0"].facts
    losses = []
    for rounded in ({name: each.weight for name, each in found.items()}, run(replace(problem, current=current), RTN(2, 16))[0]):
        losses.append(block.mean_loss({name: each.dequantize() for name, each in rounded.items()}))
    assert losses == pytest.approx([facts["block_loss"], facts["block_loss_unclipped"]], rel=1e-5)
    assert losses[0] < 0.9 * losses[1]
    for name, each in found.items():
        assert each.weight.description() == method.storage(current[name].description(), problem.dtype)
        assert not chain or torch.equal(each.weight.support, current[name].support)


@pytest.mark.parametrize("broken_at", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_learning_and_the_best_state_stays(broken_at):
    _, _, block = block_run()
    original, steps = block.run, []

    def sometimes(batch, overrides):
        steps.append(torch.is_grad_enabled())
        return original(batch, overrides) * (float("nan") if sum(steps) == broken_at and steps[-1] else 1.0)

    found = Clip(bits=2, epochs=2).tune(replace(block, run=sometimes))["linear0"]
    assert found.facts["learning_ended"].endswith(f"step {broken_at - 1}") and found.facts["learning_steps"] == broken_at - 1
    assert found.facts["block_loss"] <= found.facts["block_loss_unclipped"]
    never = Clip(bits=2, epochs=1).tune(replace(block, run=lambda batch, overrides: original(batch, overrides) * float("nan")))
    assert never["linear0"].logits is None


def test_the_walk_takes_the_learned_grids():
    problem, _, block = block_run()
    method = Clip(bits=3, group_size=16, feedback=True)
    settings = method.tune(block)
    walked = {name: each.weight for name, each in method.compress(replace(problem, settings=settings)).items()}
    plain = {
        name: each.weight
        for name, each in replace(method, feedback=False).compress(replace(problem, settings=settings)).items()
    }
    assert all(torch.equal(walked[name].scales, plain[name].scales) for name in plain)
    assert relative_error(problem, walked) < 0.8 * relative_error(problem, plain)


def test_besa_learns_ratios_and_ranges_together():
    problem, _, block = block_run()
    joint = BESA(bits=2, group_size=16, epochs=20)
    tuned = joint.tune(block)
    facts = tuned["linear0"].facts
    found = {name: each.weight for name, each in joint.compress(replace(problem, settings=tuned)).items()}
    assert block.mean_loss({name: each.dequantize() for name, each in found.items()}) == pytest.approx(facts["block_loss"])
    assert facts["clipped"] and facts["block_loss"] < 0.95 * facts["block_loss_even"]
    assert sum(int(each.counts.sum()) for each in tuned.values()) == 24 * 32
    assert {each.description()["values"]["kind"] for each in found.values()} == {"integer"}


def test_through_the_engine(tmp_path):
    steps = [{"method": "wanda"}, {"method": "clip", "bits": 3, "group_size": 64, "epochs": 2, "feedback": True}]
    result = fw.compress(fw.plan("demo", {"steps": steps}, changes=TINY), tmp_path / "out")
    rows = [row for row in result.rows if row.chain]
    assert all(row.predicted_bytes == row.bytes and row.measured["sparsity"] >= 0.5 for row in rows)
    assert all(row.measured["block_loss"] <= row.measured["block_loss_unclipped"] for row in rows)


def test_errors():
    for settings, message in (
        ({"fit": "mse"}, "leave fit and grid out"),
        ({"epochs": 0}, "cannot learn so"),
        ({"bits": 7}, "these bits"),
    ):
        with pytest.raises(FeatherweightError, match=message):
            Clip(**settings)
    with pytest.raises(FeatherweightError, match="these bits"):
        BESA(bits=7)
