"""Permuted N:M: one order for all linears of an input, within heads where it is folded; less is lost than in the order given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import featherweight as fw
from common import SMALL
from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.masks.permutation import retained
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.ria import RIA
from featherweight.methods.saliency import Saliency
from featherweight.methods.wanda import Wanda
from featherweight.models.axis import PERMUTATION, Axis, Producer
from featherweight.models.folding import check_foldable
from problems import make

METHODS = [RIA, Wanda, Magnitude, Saliency]


def stacked(method, problem, indices=None):
    scores = torch.cat([method.score(name, weight.dequantize(), problem) for name, weight in problem.current.items()])
    return scores if indices is None else scores[:, indices]


@pytest.mark.parametrize("kind", METHODS)
def test_the_order_keeps_more_of_all_linears_scores(kind):
    problem, method = make(), kind(pattern="2:4", permute=True)
    drawn = method.prepare(problem)
    pattern = Pattern.parse("2:4")
    assert drawn.size == 80 and method.prepares and not kind(pattern="2:4").prepares
    assert retained(stacked(method, problem, drawn.indices), pattern) > 1.02 * retained(stacked(method, problem), pattern)
    assert torch.equal(drawn.indices, method.prepare(problem).indices)


#: Four heads of 16 columns, two of them made by the same rows; the last 16 columns belong to one more of each.
SHARED = tuple(16 * (column // 32) + column % 16 for column in range(64))
HEADS = tuple(column // 16 for column in range(64))


@pytest.mark.parametrize("shared", [None, SHARED])
def test_where_it_is_folded_it_stays_within_heads(shared):
    problem = replace(make(((24, 64),)), shared=shared, groups=HEADS)
    drawn = RIA(pattern="2:4", permute=True).prepare(problem)
    producer = Producer("values", "linear", frozenset({PERMUTATION}), shared)
    axis = Axis("x", "x", 64, ("linear0",), (), (producer,), frozenset({PERMUTATION}), shared, HEADS)
    check_foldable(axis, drawn)
    pattern, method = Pattern.parse("2:4"), RIA(pattern="2:4")
    assert retained(stacked(method, problem, drawn.indices), pattern) > retained(stacked(method, problem), pattern)


def test_heads_that_a_group_would_cross_stay_as_they_are():
    problem = replace(make(((24, 60),)), groups=tuple(column // 6 for column in range(60)))
    assert RIA(pattern="2:4", permute=True).prepare(problem).indices.tolist() == list(range(60))


def test_without_a_pattern_there_is_nothing_to_order():
    with pytest.raises(FeatherweightError, match="only N:M depends on the order"):
        RIA(permute=True)
    with pytest.raises(FeatherweightError, match="does not fit"):
        fw.plan("demo", "ria-2of4-permuted", changes={"steps.0.pattern": "3:7"})


def test_less_is_lost_on_a_model(tmp_path) -> None:
    """The recipe on the embedded model, alone and with four bits after it, and without the permutation."""
    rounding = {"method": "gptq", "bits": 4, "group_size": 128}
    errors = {}
    for name, permute in (("given", False), ("permuted", True)):
        steps = [{"method": "ria", "pattern": "2:4", "permute": permute}, rounding]
        plan = fw.plan("demo", {"steps": steps}, changes=SMALL)
        result = fw.compress(plan, tmp_path / name)
        assert result.totals.file_bytes == plan.totals.file_bytes
        rows = [row for row in result.rows if row.chain]
        errors[name] = sum(row.measured["relative_error"] for row in rows) / len(rows)
        assert all(row.measured["sparsity"] >= 0.5 for row in rows)
    storages = {row.module.rsplit(".", 1)[1]: row.storage.split("(")[0] for row in plan.rows if row.chain}
    assert {name for name, storage in storages.items() if storage == "masked"} == {"o_proj", "down_proj"}
    assert errors["permuted"] < 0.95 * errors["given"]
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(1, 33)[None]
    ours = fw.load(tmp_path / "permuted", dtype=torch.float32)(input_ids=tokens).logits
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "permuted", dtype=torch.float32)(input_ids=tokens).logits
    assert torch.equal(ours, theirs)
