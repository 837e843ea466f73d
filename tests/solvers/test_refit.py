"""Values of kept weights, and which to keep: against closed forms and all masks there are."""

from itertools import combinations

import pytest
import torch

from featherweight.grids.exact import Exact
from featherweight.masks.patterns import Pattern
from featherweight.methods.dropping import Select
from featherweight.solvers.admm import select_and_solve
from featherweight.solvers.damping import factorise
from featherweight.solvers.refit import refit_kept
from featherweight.solvers.sweep import sweep


def make(rows, width, seed=0):
    """A weight and a positive definite Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * width, width, generator=generator) @ (torch.randn(width, width, generator=generator) / width**0.5 + 0.3)
    hessian = x.T @ x / len(x)
    return torch.randn(rows, width, generator=generator), hessian + 0.01 * hessian.diagonal().mean() * torch.eye(width)


def objective(weight, values, hessian):
    error = (weight - values).double()
    return ((error @ hessian.double()) * error).sum(1)


def best_values(weight, kept, hessian):
    """Row by row the closed form `x_S = w_S + H_SS⁻¹ H_S· (w off S)`, float64."""
    solution = torch.zeros_like(weight, dtype=torch.float64)
    for row, mask in enumerate(kept):
        inside, w = hessian.double()[mask][:, mask], weight[row].double()
        solution[row, mask] = torch.linalg.solve(inside, hessian.double()[mask] @ w)
    return solution


def test_the_refit_reaches_the_closed_form():
    weight, hessian = make(12, 48)
    kept = torch.rand(12, 48, generator=torch.Generator().manual_seed(1)) < 0.5
    start = torch.where(kept, weight, 0.0)
    found, best = refit_kept(weight, start, kept, hessian, 60), best_values(weight, kept, hessian)
    assert not found[~kept].any()
    torch.testing.assert_close(found.double(), best, atol=2e-3, rtol=2e-3)
    assert (objective(weight, found, hessian) <= objective(weight, start, hessian)).all()


def test_the_refit_never_makes_a_row_worse():
    weight, hessian = make(6, 32)
    kept = torch.rand(6, 32, generator=torch.Generator().manual_seed(1)) < 0.5
    best = best_values(weight, kept, hessian).float()
    again = refit_kept(weight, best, kept, hessian, 3)
    assert (objective(weight, again, hessian) <= objective(weight, best, hessian) * (1 + 1e-5)).all()
    nothing = torch.zeros_like(kept)
    assert not refit_kept(weight, torch.zeros_like(weight), nothing, hessian).any()
    whole = refit_kept(weight, weight, ~nothing, hessian)
    assert torch.equal(whole, weight)


@pytest.mark.parametrize("pattern", ["row", "2:4", "layer"])
def test_selecting_together_beats_the_walk_and_keeps_counts(pattern):
    weight, hessian = make(24, 96)
    weight[8:] *= 3.0
    rule, linears = Pattern.parse(pattern), [8, 16]

    def largest(sizes):
        return torch.cat([~rule.dropped(part) for part in sizes.split(linears)])

    values, kept, iterations = select_and_solve(weight, hessian, largest, 300, 20)
    assert not values[~kept].any() and iterations < 300
    for part in kept.split(linears):
        assert int(part.sum()) == rule.kept(part.shape)
    factor = factorise(hessian, 0.0)
    decision = Select(rule, rule.of or 96, linears, 96, weight.device)
    walked = sweep(weight, factor, Exact(torch.float32), decision=decision).decoded
    assert objective(weight, values, hessian).sum() < 0.8 * objective(weight, walked, hessian).sum()


def test_selected_masks_come_near_the_best_of_all_masks():
    masks = torch.zeros(252, 10, dtype=torch.bool)
    for index, chosen in enumerate(combinations(range(10), 5)):
        masks[index, list(chosen)] = True
    ratios, walked_ratios = [], []
    for seed in range(10):
        weight, hessian = make(1, 10, seed)
        rule = Pattern.parse("row", 0.5)
        values, _, _ = select_and_solve(weight, hessian, lambda sizes, rule=rule: ~rule.dropped(sizes), 300, 30)
        decision = Select(rule, 10, [1], 10, weight.device)
        walked = sweep(weight, factorise(hessian, 0.0), Exact(torch.float32), decision=decision).decoded
        several = weight.expand(252, 10)
        best = objective(several, best_values(several, masks, hessian), hessian).min()
        ratios.append(float(objective(weight, values, hessian).sum() / best))
        walked_ratios.append(float(objective(weight, walked, hessian).sum() / best))
    assert min(ratios) > 0.999 and sum(ratios) < 0.6 * sum(walked_ratios), (ratios, walked_ratios)
