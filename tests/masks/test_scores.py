"""Scores against hand-made examples and what must not change them."""

import pytest
import torch

from featherweight.masks import scores
from featherweight.masks.patterns import Pattern

WEIGHT = torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]])
RMS = torch.tensor([4.0, 1.0, 9.0])


def random(rows=6, inputs=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, inputs, generator=generator), torch.rand(inputs, generator=generator) + 0.1


def test_by_hand():
    torch.testing.assert_close(scores.wanda(WEIGHT, RMS), torch.tensor([[4.0, 2.0, 0.0], [12.0, 4.0, 0.0]]))
    shares = torch.tensor([[1 / 4 + 1 / 3, 2 / 6 + 2 / 3, 0.0], [3 / 4 + 3 / 7, 4 / 6 + 4 / 7, 0.0]])
    torch.testing.assert_close(scores.relative_importance(WEIGHT), shares)
    torch.testing.assert_close(scores.ria(WEIGHT, RMS), shares * torch.tensor([2.0, 1.0, 3.0]))
    column, row = torch.tensor([10.0, 20.0, 1.0]).sqrt(), torch.tensor([[5.0], [25.0]]).sqrt()
    expected = (WEIGHT.abs() / column + WEIGHT.abs() / row) * RMS.sqrt()
    torch.testing.assert_close(scores.balanced(WEIGHT, RMS, (1, 1, 0.5)), expected)
    torch.testing.assert_close(scores.saliency(WEIGHT, RMS), WEIGHT**2 / RMS)


@pytest.mark.parametrize("elements", [1, 7, 10**6])
def test_the_output_range_by_brute_force(elements):
    weight, _ = random(3, 4)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    expected = torch.empty(3, 4)
    for row in range(3):
        for column in range(4):
            without = weight[row].clone()
            without[column] = 0
            outputs = inputs @ without
            expected[row, column] = outputs.max() - outputs.min()
    torch.testing.assert_close(scores.output_range(weight, inputs, elements), expected)


def test_rows_and_columns_of_zeros_are_worth_nothing():
    for score in (
        scores.relative_importance(WEIGHT * 0),
        scores.ria(WEIGHT * 0, RMS),
        scores.balanced(WEIGHT * 0, RMS, (1, 1, 1)),
    ):
        assert not score.any()
    assert not scores.cumulative_share(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4"])
def test_masks_do_not_change_with_the_scale_of_inputs_or_weights(pattern):
    weight, rms = random()
    drop = Pattern.parse(pattern).dropped
    for score in (scores.wanda, scores.ria):
        assert torch.equal(drop(score(weight, rms)), drop(score(weight * 8, rms * 4)))


def test_what_the_exponents_of_the_balanced_score_contain():
    weight, rms = random()
    drop = Pattern.parse("row").dropped
    assert torch.equal(drop(scores.balanced(weight, rms, (0, 0, 1))), drop(scores.wanda(weight, rms)))
    assert torch.equal(drop(scores.wanda(weight, torch.ones(16))), drop(weight.abs()))


def test_the_cumulative_share_is_wandas_variant():
    weight, rms = random(rows=12, inputs=64)
    metric = scores.wanda(weight, rms)
    dropped = Pattern.parse("layer", 0.4).dropped(scores.cumulative_share(metric))
    ordered = metric.sort(1).values
    low, high = 0.0, 1.0
    for _ in range(60):  # the authors' search for alpha
        alpha = (low + high) / 2
        counts = (ordered.cumsum(1) <= alpha * ordered.sum(1, keepdim=True)).sum(1)
        low, high = (alpha, high) if int(counts.sum()) < int(dropped.sum()) else (low, alpha)
    assert torch.equal(dropped.sum(1), (ordered.cumsum(1) <= high * ordered.sum(1, keepdim=True)).sum(1))
    assert len(set(dropped.sum(1).tolist())) > 1
