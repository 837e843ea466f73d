"""The grammar of constraints, and errors that teach it."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.search.constraints import METRICS, parse_constraint, parse_constraints


@pytest.mark.parametrize(
    ("text", "label", "bound", "relative"),
    [
        ("accuracy(continuation) >= 0.5", "accuracy(continuation)", 0.5, False),
        ("accuracy( race high (1).jsonl )>=52.5%", "accuracy(race high (1).jsonl)", 0.525, False),
        ("perplexity(heldout) <= 1.05 * dense", "perplexity(heldout)", 1.05, True),
        ("perplexity(wikitext2:a.txt) <= dense*2", "perplexity(wikitext2:a.txt)", 2.0, True),
        ("accuracy(continuation) ≥ dense", "accuracy(continuation)", 1.0, True),
        ("kl(heldout)<=5e-2", "kl(heldout)", 0.05, False),
        ("bytes <= 120MB", "bytes", 120e6, False),
        ("bytes <= 1.5 GiB", "bytes", 1.5 * 2**30, False),
        ("bytes <= 0.25*dense", "bytes", 0.25, True),
        ("bits <= 3.5", "bits", 3.5, False),
        ("kl(heldout) <= .1", "kl(heldout)", 0.1, False),
        ("peak-memory <= 8gib", "peak-memory", 2**33, False),
        ("tokens-per-second >= 40", "tokens-per-second", 40, False),
    ],
)
def test_what_is_understood(text, label, bound, relative):
    parsed = parse_constraint(text)
    assert (parsed.label, parsed.bound, parsed.relative) == (label, bound, relative)
    assert parsed.limit(10.0) == (bound * 10 if relative else bound)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "METRIC"),
        ("bits 3", "bits <= 3.5"),
        ("acuracy(continuation) >= 0.5", "accuracy(TASK)"),
        ("tokens_per_second >= 4", "did you mean tokens-per-second"),
        ("accuracy >= 0.5", "accuracy(TASK)"),
        ("accuracy() >= 0.5", "accuracy(TASK)"),
        ("bytes(heldout) <= 3MB", "no brackets"),
        ("bits >= 3", '"bits <= 3"'),
        ("bits < 3", '"bits <= 3"'),
        ("accuracy(continuation) = 0.5", '"accuracy(continuation) >= 0.5"'),
        ("accuracy(continuation) >= 50", "50%"),
        ("kl(heldout) <= 1.1 * dense", "divergence from itself is 0"),
        ("perplexity(heldout) <= dense + 1", "FACTOR * dense"),
        ("perplexity(heldout) <= x * dense", "'x'"),
        ("bytes <= 3 bananas", "GiB"),
        ("bits <= -1", "above 0"),
    ],
)
def test_what_is_refused_says_what_would_do(text, says):
    with pytest.raises(FeatherweightError) as problem:
        parse_constraint(text)
    assert says in str(problem.value)


def test_every_example_is_understood():
    for name, metric in METRICS.items():
        assert parse_constraint(metric.example).metric is metric and metric.name == name


def test_cheap_ones_come_first_and_each_thing_once():
    parsed = parse_constraints(["kl(heldout) <= 1", "peak-memory <= 1GB", "bytes <= 1GB"])
    assert [each.metric.name for each in parsed] == ["bytes", "peak-memory", "kl"]
    with pytest.raises(FeatherweightError, match="stricter"):
        parse_constraints(["bits <= 3", "bits <= 4"])
    with pytest.raises(FeatherweightError, match="--subject-to"):
        parse_constraints([])


def test_how_far_beyond_a_bound():
    least, most = parse_constraint("tokens-per-second >= 40"), parse_constraint("bits <= 3")
    assert least.excess(30, 40) == 10 and least.excess(50, 40) == -10
    assert most.excess(4, 3) == 1 and most.excess(float("nan"), 3) == float("inf")
