"""Orders of inputs for N:M: never worse, as good as all orders of few inputs, the gains as by brute force."""

from itertools import combinations

import pytest
import torch

from featherweight.masks.patterns import Pattern
from featherweight.masks.permutation import _gains, best_order, retained


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).abs()


@pytest.mark.parametrize("name", ["2:4", "1:4", "4:8", "3:4"])
@pytest.mark.parametrize("groups", [3, 256])
def test_no_order_keeps_less_than_the_one_found(name, groups):
    pattern = Pattern.parse(name)
    for seed in range(8):
        scores = draw(24, 48, seed=seed) * draw(1, 48, seed=seed + 100).exp()
        order = best_order(scores, pattern, groups)
        assert sorted(order.tolist()) == list(range(48)) and torch.equal(order, best_order(scores, pattern, groups))
        assert retained(scores[:, order], pattern) > retained(scores, pattern)
    even = torch.ones(5, 16)
    assert best_order(even, Pattern.parse("2:4")).tolist() == list(range(16))


def test_few_inputs_get_nearly_the_best_of_all_orders():
    """Of what the best way to halve 8 inputs keeps more, on average three quarters."""
    pattern, more, most = Pattern.parse("2:4"), 0.0, 0.0
    for seed in range(20):
        scores = draw(6, 8, seed=seed) * draw(1, 8, seed=seed + 100).exp()
        given, found = retained(scores, pattern), retained(scores[:, best_order(scores, pattern)], pattern)
        halves = ([*half, *(set(range(8)) - set(half))] for half in combinations(range(8), 4))
        best = max(retained(scores[:, order], pattern) for order in halves)
        assert given <= found <= best + 1e-4
        more, most = more + found - given, most + best - given
    assert more > 0.75 * most


def test_gains_are_differences_of_what_is_kept():
    pattern, scores, place = Pattern.parse("2:4"), draw(7, 5, 4), 2
    gains = _gains(scores, place, pattern.keep)
    for taker in range(5):
        kept = []
        for giver in range(5):
            tried = scores[:, taker].clone()
            tried[:, place] = scores[:, giver, place]
            kept.append(retained(tried, pattern))
        differences = torch.tensor(kept).double() - kept[0]
        torch.testing.assert_close(gains[taker] - gains[taker, 0], differences, rtol=1e-5, atol=1e-5)
