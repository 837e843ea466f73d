"""Soft masks by rank against a brute-force version, and counts that meet a budget exactly."""

import pytest
import torch

from featherweight.solvers.allocation import (
    CANDIDATES,
    PACKED_TOGETHER,
    SoftMask,
    candidates,
    project_counts,
    ranks,
    tilted_logits,
)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 5])
def test_the_keep_probability_is_the_sum_over_candidates(rows):
    scores, probabilities = draw(5, 30), torch.softmax(draw(rows, CANDIDATES, seed=1) * 4, 1)
    mask, levels = SoftMask.of(scores), candidates(torch.device("cpu"))
    dropped = torch.zeros(5, 30)
    for row in range(5):
        for place, column in enumerate(scores[row].argsort().tolist()):
            for beta, level in zip(probabilities[row % rows], levels, strict=True):
                dropped[row, column] += beta * (place < int(30 * level + 1e-6))
    probabilities.requires_grad_()
    cost = draw(5, 30, seed=2)
    (mask.keep(probabilities) * cost).sum().backward()
    for index in range(CANDIDATES):  # the expectation is linear in β, so its gradient is exact
        counted = torch.arange(30) < int(30 * levels[index] + 1e-6)
        each = torch.stack([-(cost[row][scores[row].argsort()] * counted).sum() for row in range(5)])
        expected = each if rows == 5 else each.sum(0, keepdim=True)
        torch.testing.assert_close(probabilities.grad[:, index], expected)
    hard = mask.keep(probabilities.detach())
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    counts = ((probabilities.detach() @ levels) * 30 + 1e-6).floor().expand(5)
    assert torch.equal((hard == 0).sum(1), counts.long())


def test_equal_scores_go_in_order():
    assert ranks(torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_start_has_the_mean_that_was_asked_for(ratio):
    logits = tilted_logits(ratio, 2, torch.device("cpu"))
    means = torch.softmax(logits, 1) @ candidates(torch.device("cpu"))
    assert means.tolist() == pytest.approx([ratio, ratio], abs=1e-5)
    assert ratio != 0.5 or float(logits.abs().max()) < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_budgets_are_met_exactly_and_between_linears_whole_bytes_move(seed):
    shapes = [(17, 40), (3, 100), (24, 64)]
    ratios = [draw(rows, seed=seed * 3 + index) * 1.4 - 0.2 for index, (rows, _) in enumerate(shapes)]
    inputs = [width for _, width in shapes]
    budgets = [int(rows * width * (0.05 + 0.04 * seed)) for rows, width in shapes]
    counts = project_counts(ratios, inputs, budgets)
    assert sum(int(each.sum()) for each in counts) == sum(budgets)
    for each, width, budget in zip(counts, inputs, budgets, strict=True):
        assert bool(((each >= 0) & (each <= width)).all())
        assert (int(each.sum()) - budget) % PACKED_TOGETHER == 0


def test_even_ratios_stay_even():
    counts = project_counts([torch.full((8,), 0.5), torch.full((4,), 0.5)], [16, 32], [64, 64])
    assert [each.tolist() for each in counts] == [[8] * 8, [16] * 4]
