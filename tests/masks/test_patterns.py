"""Patterns: exact counts, the smallest go, ties by position, errors that teach."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern

SHAPES = [(5, 48), (1, 16), (7, 16)]
PATTERNS = [
    ("layer", 0.5),
    ("layer", 0.29),
    ("row", 0.3),
    ("row", 0.0),
    ("2:4", None),
    ("4:8", 0.5),
    ("1:4", None),
    ("3:16", None),
]


def scores(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "ratio"), PATTERNS)
@pytest.mark.parametrize("constant", [False, True])
def test_the_number_kept_is_exact_even_where_all_scores_are_equal(shape, name, ratio, constant):
    pattern = Pattern.parse(name, ratio)
    dropped = pattern.dropped(torch.ones(shape) if constant else scores(shape))
    assert int((~dropped).sum()) == pattern.kept(shape)
    if pattern.per_row:
        assert len(set(dropped.sum(1).tolist())) == 1
    if pattern.of:
        assert ((~dropped).view(-1, pattern.of).sum(1) == pattern.keep).all()


@pytest.mark.parametrize(("name", "ratio"), PATTERNS)
def test_the_smallest_of_those_that_compete_go(name, ratio):
    pattern, values = Pattern.parse(name, ratio), scores((5, 48))
    dropped = pattern.dropped(values)
    width = pattern.of or (48 if name == "row" else 5 * 48)
    for part, gone in zip(values.view(-1, width), dropped.view(-1, width), strict=True):
        assert not gone.any() or part[gone].max() < part[~gone].min()


def test_of_equal_scores_the_first_go():
    assert Pattern.parse("layer", 0.5).dropped(torch.ones(2, 3)).tolist() == [[True] * 3, [False] * 3]
    assert Pattern.parse("2:4").dropped(torch.tensor([[1.0, 0.0, 1.0, 1.0]])).tolist() == [[True, True, False, False]]


def test_ratios_are_rounded_down_and_safe_from_the_last_bit():
    assert Pattern.parse("row", 0.29).kept((1, 100)) == 71
    assert Pattern.parse("row", 0.5).kept((3, 7)) == 12
    assert Pattern.parse("layer", 0.999).kept((1, 3)) == 1
    assert Pattern.parse("1:4").ratio == 0.75


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 50, "half", float("nan")])
def test_ratios_outside_are_refused(ratio):
    with pytest.raises(FeatherweightError, match="less than 1"):
        Pattern.parse("layer", ratio)


@pytest.mark.parametrize("name", ["4:4", "5:4", "0:4", "2:4:8", "a:b", "2of4", "", 124, None])
def test_unknown_patterns_show_how_to_write_them(name):
    with pytest.raises(FeatherweightError, match='"2:4", quotes included'):
        Pattern.parse(name)


def test_contradictions_and_inputs_that_do_not_fit():
    with pytest.raises(FeatherweightError, match=r"ratio 0\.75: 1:4 keeps 1 of every 4"):
        Pattern.parse("1:4", 0.5)
    with pytest.raises(FeatherweightError) as caught:
        Pattern.parse("2:8").check(20, "q_proj")
    for part in ("q_proj", "20 inputs", "remainder 4", "multiple of 8", '"2:4"'):
        assert part in str(caught.value)
    with pytest.raises(FeatherweightError):
        Pattern.parse("2:8").dropped(torch.rand(3, 20))
