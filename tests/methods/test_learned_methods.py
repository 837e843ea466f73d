"""BESA, PQP and BaWA: on the embedded model, through the engine; what they promise of losses, counts and bytes."""

from dataclasses import replace
from math import prod

import pytest
import torch

import featherweight as fw
from common import SMALL, TINY
from featherweight.errors import FeatherweightError
from featherweight.masks import scores
from featherweight.methods.bawa import BaWA
from featherweight.methods.besa import BESA
from featherweight.methods.gptq import GPTQ
from featherweight.methods.jsq import JSQ
from featherweight.methods.pqp import PQP
from featherweight.packed.files import sha256
from problems import block_run


@pytest.mark.parametrize(
    "method",
    [
        BESA(epochs=8),
        BESA(granularity="layer", epochs=8),
        BESA(ratio=0.3, epochs=8),
        BESA(metric="ria"),
        BESA(optimizer="prodigy", epochs=8),
        BESA(optimizer="prodigy", epochs=8),
    ],
)
def test_learning_never_hurts_and_counts_are_exact(method):
    _, _, block = block_run()
    found = method.tune(block)
    dropped = sum(int(each.counts.sum()) for each in found.values())
    assert dropped == 2 * int(24 * 32 * method.ratio)
    facts = found["linear0"].facts
    assert facts["block_loss"] <= facts["block_loss_even"]
    assert method.epochs == 1 or facts["block_loss"] < 0.98 * facts["block_loss_even"]


@pytest.mark.parametrize("settings", [{}, {"error_term": "block"}, {"error_weight": 0.0}])
def test_pqp_keeps_the_grid_and_drops_what_is_zero_first(settings):
    method = PQP(epochs=2, **settings)
    problem, current, block = block_run(GPTQ(bits=3, group_size=16))
    found = method.compress(replace(problem, current=current, settings=method.tune(block)))
    for name, compressed in found.items():
        values, rounded = compressed.weight.dequantize(), current[name].dequantize()
        assert torch.equal(values, torch.where(compressed.weight.support, rounded, 0.0))
        for row in range(len(values)):  # a kept zero only where every other weight of the row is kept or zero
            assert (
                not (compressed.weight.support[row] & (rounded[row] == 0)).any()
                or not (~compressed.weight.support[row] & (rounded[row] != 0)).any()
            )


@pytest.mark.parametrize("method", [PQP(epochs=0), BESA(epochs=0, ratio=0.25), BESA(epochs=0, ratio=0.45)])
def test_without_epochs_ratios_are_even(method):
    counts = [each.counts for each in method.tune(block_run()[2]).values()]
    assert {int(count) for each in counts for count in each} <= {int(32 * method.ratio), int(32 * method.ratio) + 1}


def test_the_score_of_pqp_by_hand():
    weight, values, rms = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[1.0, -2.0], [0.0, 4.0]]),
        torch.tensor([1.0, 4.0]),
    )
    importance = scores.ria(weight, rms)
    expected = values.abs() * (importance - importance.min()) / (importance.max() - importance.min())
    torch.testing.assert_close(PQP().score(weight, values, rms), expected)


def test_a_loss_that_is_not_finite_ends_the_learning_and_leaves_a_finite_result():
    _, _, block = block_run()
    original, calls = block.run, []

    def sometimes(batch, overrides):
        calls.append(batch)
        return original(batch, overrides) * (float("nan") if torch.is_grad_enabled() and len(calls) == 3 else 1.0)

    found = BESA(epochs=3).tune(replace(block, run=sometimes))
    assert found["linear0"].facts["learning_ended"].endswith("step 2") and found["linear0"].facts["learning_steps"] == 2
    assert sum(int(each.counts.sum()) for each in found.values()) == 24 * 32


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_bawa_is_never_worse_than_the_scores_it_contains(pattern):
    problem, _, block = block_run()
    starts, tuned = BaWA(steps=0, pattern=pattern).tune(block), BaWA(steps=30, batches=4, pattern=pattern).tune(block)
    facts = tuned["linear0"].facts
    assert (
        facts["block_loss"] <= facts["block_loss_wanda"] and facts["block_loss"] < starts["linear0"].facts["block_loss"] * 1.01
    )
    found = BaWA(pattern=pattern).compress(replace(problem, settings=tuned))
    again = block.mean_loss({name: compressed.weight.dequantize() for name, compressed in found.items()})
    assert again == pytest.approx(facts["block_loss"], rel=1e-4)


def test_jsq_searches_the_clip_by_the_blocks_output():
    problem, _, block = block_run()
    found = JSQ(clip=None).tune(block)
    kept = JSQ(clip=None).compress(replace(problem, settings=found))
    fixed = JSQ().compress(problem)
    losses = [
        sum(float(block.loss(batch, {name: each.weight.dequantize() for name, each in chosen.items()})) for batch in range(2))
        / 2
        for chosen in (kept, fixed)
    ]
    assert losses[0] <= losses[1] and losses[0] == pytest.approx(found["linear1"].facts["block_loss"], rel=1e-4)


def test_errors():
    with pytest.raises(FeatherweightError, match="returns none"):
        BESA().tune(block_run(broken=True)[2])
    with pytest.raises(FeatherweightError, match="smoothing: none"):
        BESA(ratio=0.7, smoothing="sigmoid")
    with pytest.raises(FeatherweightError, match="less than 1"):
        PQP(ratio=1.0)
    with pytest.raises(FeatherweightError, match="nothing to drop"):
        BESA(ratio=0.0)
    with pytest.raises(FeatherweightError, match="true_sequential"):
        fw.plan("demo", {"steps": [{"method": "besa"}], "engine": {"true_sequential": True}})
    with pytest.raises(FeatherweightError, match="put the structured step last"):
        fw.plan("demo", {"steps": [{"method": "structured"}, {"method": "besa"}]})


@pytest.mark.parametrize(
    "steps",
    [
        [{"method": "besa"}, {"method": "gptq", "bits": 4}],
        [{"method": "rtn", "bits": 3}, {"method": "pqp", "granularity": "layer"}],
        [{"method": "besa", "bits": 3, "group_size": 64}],
        [{"method": "alps", "ratios": "learned", "iterations": 3}],
    ],
)
def test_through_the_engine(steps, tmp_path):
    plan = fw.plan("demo", {"steps": steps}, changes={**SMALL, "calibration.batch_size": 4})
    result = fw.compress(plan, tmp_path / "out")
    for block in plan.structure.blocks:
        planned = [row for row in plan.rows if row.block == block and row.chain]
        measured = [row for row in result.rows if row.block == block and row.chain]
        assert sum(row.predicted_bytes for row in planned) == sum(row.bytes for row in measured)
        losses = [{key.removeprefix("ratios_"): value for key, value in row.measured.items()} for row in measured]
        assert all(each["block_loss"] <= each["block_loss_even"] for each in losses)
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("model-*.safetensors"))
    assert size <= plan.totals.file_bytes < size + 32 * 28 + 64


def test_a_block_loses_exactly_what_was_asked_and_less_error_than_with_even_ratios(tmp_path):
    def losses(name, **settings):
        result = fw.compress(fw.plan("demo", {"steps": [{"method": "besa", **settings}]}, changes=TINY), tmp_path / name)
        rows = [row for row in result.rows if row.chain]
        for block in result.plan.structure.blocks:
            dropped = sum(round(row.measured["sparsity"] * prod(row.shape)) for row in rows if row.block == block)
            assert dropped == sum(prod(row.shape) // 2 for row in rows if row.block == block)
        return {row.block: row.measured["block_loss"] for row in rows}

    learned, even = losses("learned", epochs=4), losses("even", epochs=0)
    first = next(iter(even))  # the only block whose inputs are the same
    assert learned[first] < 0.97 * even[first]


def test_the_dense_chain_as_reference_and_going_on_with_it(tmp_path):
    def shards(name):
        return [sha256(path) for path in sorted((tmp_path / name).glob("model-*.safetensors"))]

    def kill(event):
        if event.stage == "compressed" and event.block == "model.layers.2":
            raise InterruptedError

    dense = fw.plan("demo", "besa-50-row", changes={**TINY, "engine.reference": "dense"})
    fw.compress(dense, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fw.compress(dense, tmp_path / "killed", report=kill)
    assert fw.compress(dense, tmp_path / "killed").resumed == 3
    assert shards("killed") == shards("whole")
    fw.compress(fw.plan("demo", "besa-50-row", changes=TINY), tmp_path / "block")
    alike = [ours == theirs for ours, theirs in zip(shards("whole"), shards("block"), strict=True)]
    assert alike == [True, True, False, False, False]  # the first block's inputs are those of the dense model
    with pytest.raises(FeatherweightError, match=r"leave engine\.reference out"):
        fw.plan("demo", "wanda-50", changes={"engine.reference": "dense"})
