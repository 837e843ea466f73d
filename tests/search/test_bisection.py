"""Bisection: the largest value that holds, what was asked, and functions that are not monotone."""

import random

import pytest

from featherweight.errors import FeatherweightError
from featherweight.search.bisection import bisect


@pytest.mark.parametrize("seed", range(40))
def test_random_thresholds(seed):
    draw = random.Random(seed)
    low = draw.uniform(-5, 5)
    high = low + draw.uniform(0.1, 10)
    edge, tolerance = draw.uniform(low - 1, high + 1), 10 ** draw.uniform(-4, 0)
    found, log = bisect(low, high, lambda value: value <= edge, tolerance)
    assert [holds for _, holds in log] == [value <= edge for value, _ in log]
    assert len({value for value, _ in log}) == len(log)  # nothing is asked twice
    if edge < low:
        assert found is None and log == [(low, False)]
    elif edge >= high:
        assert found == high and log == [(low, True), (high, True)]
    else:
        assert (found, True) in log and edge - tolerance <= found <= edge


@pytest.mark.parametrize(("last", "edge"), [(last, edge) for last in range(1, 8) for edge in range(-1, last + 1)])
def test_whole_numbers_by_rounding_down(last, edge):
    found, _ = bisect(0, last, lambda value: int(value) <= edge, 1)
    assert found is None if edge < 0 else int(found) == edge


def test_what_is_not_monotone_still_returns_something_that_was_seen_to_hold():
    draw = random.Random(0)
    for _ in range(50):
        answers = {}
        found, log = bisect(0.0, 1.0, lambda value, answers=answers: answers.setdefault(value, draw.random() < 0.5), 0.05)
        assert found is None or answers[found]
        assert dict(log) == answers
    found, log = bisect(0.0, 1.0, lambda value: not 0.4 < value < 0.6, 0.01)
    assert found == 1.0 and log == [(0.0, True), (1.0, True)]


def test_an_empty_range_a_single_value_and_a_tolerance_below_the_floats():
    assert bisect(2, 2, lambda value: True, 1) == (2, [(2, True)])
    assert bisect(2, 2, lambda value: False, 1) == (None, [(2, False)])
    found, log = bisect(0.0, 1.0, lambda value: value <= 0.3, 1e-300)
    assert found == 0.3 and len(log) < 100
    for words in ((1, 0, 1), (0, 1, 0), (0, 1, -1), (0, float("nan"), 1)):
        with pytest.raises(FeatherweightError):
            bisect(words[0], words[1], lambda value: True, words[2])
