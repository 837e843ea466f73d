"""Recall tasks: what they ask, what a model that copies and one that cannot score, and what a lossy cache does to it."""

import math
from types import SimpleNamespace

import pytest
import torch

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.evaluation import recall as module
from featherweight.evaluation.recall import TASKS, make_examples, recall
from featherweight.kv_cache import CacheSettings
from featherweight.models.source import resolve_model
from lossy import Coarse

CACHE = CacheSettings(keys=Coarse(), values=Coarse())


@pytest.fixture(scope="module")
def tokenizer():
    return resolve_model("demo").tokenizer()


class Copies(torch.nn.Module):
    """Goes on as the text went on after the longest earlier match of its last tokens; badly where `forgets`."""

    def __init__(self, forgets=0):
        super().__init__()
        self.forgets = forgets

    def forward(self, input_ids):
        tokens = input_ids[0].tolist()
        logits = torch.zeros(1, len(tokens), 4096)
        for at in range(1, len(tokens)):
            best = max(range(at), key=lambda j: next((k for k in range(j + 1) if tokens[j - k] != tokens[at - k]), j + 1))
            logits[0, at, tokens[best + 1]] = 1
        logits[0, max(0, len(tokens) - 1 - self.forgets) : -1] *= -1
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_looks_back_solves_every_task_and_one_that_does_not_none(name, tokenizer):
    solved = recall(Copies(), tokenizer, name, cache=None, length=120, examples=3)
    assert [(each.name, each.value) for each in solved] == [(f"recall_{name}_exact", 1.0)]
    failed = recall(Copies(forgets=120), tokenizer, name, cache=None, length=120, examples=3)
    assert failed[0].value == 0
    partly = recall(Copies(forgets=1), tokenizer, name, cache=None, length=120, examples=3)[0].value
    assert partly == 0 if TASKS[name].whole else partly == pytest.approx(1 - 1 / 52)


def test_examples_have_the_asked_length_and_the_code_stands_once_before_the_question(tokenizer):
    for item in make_examples(tokenizer, TASKS["passkey"], 200, 5, seed=1):
        text, answer = tokenizer.decode(item.tokens), tokenizer.decode(item.tokens[-item.answers :]).strip()
        assert len(item.tokens) == 200 and len(answer) == 5 and text.count(answer) == 2
        assert text.index(answer) < 0.85 * len(text)
    first, again, other = (make_examples(tokenizer, TASKS["copy"], 99, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(first[1].tokens, again[1].tokens) and not torch.equal(first[1].tokens, other[1].tokens)


def test_a_coded_cache_is_compared_with_the_exact_one_only_where_that_can_do_the_task(tokenizer, monkeypatch):
    model = fw.load("demo", dtype=torch.float32)
    exact, through, relative = recall(model, tokenizer, "copy", cache=CACHE, length=96, examples=2)
    assert (exact.protocol.cache, through.protocol.cache) == ("none", "keys coarse, values coarse")
    assert exact.protocol.differences(through.protocol).keys() == {"cache"}
    assert exact.value < 0.8 and math.isnan(relative.value)
    monkeypatch.setattr(module, "COUNTABLE", 0.1)
    exact, through, relative = recall(model, tokenizer, "copy", cache=CACHE, length=96, examples=2)
    assert relative.value == through.value / exact.value < 1


def test_what_cannot_be_asked_is_refused(tokenizer):
    model = fw.load("demo", dtype=torch.float32)
    for asked, words in (
        ({"name": "passky"}, "did you mean passkey"),
        ({"length": 4096}, "trained for"),
        ({"length": 32}, "room"),
    ):
        with pytest.raises(FeatherweightError, match=words):
            recall(model, tokenizer, asked.pop("name", "copy"), cache=None, **asked)
