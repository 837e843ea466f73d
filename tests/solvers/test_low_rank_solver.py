"""Low-rank solvers: the Eckart–Young optimum in the norm of H, singular H, rounded factors that only get better."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.packed.dense import Dense
from featherweight.solvers.alternate import alternate
from featherweight.solvers.low_rank import Metric, best_factors, fit_factors, orthonormal


def make(rows=24, columns=40, tokens=200, seed=0):
    """A weight and the Hessian of correlated inputs, of rank `tokens` at most."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, Metric(x.T @ x / tokens)


def residual(weight, factors):
    return weight - factors.left.T @ factors.right


@pytest.mark.parametrize("tokens", [200, 12])  # fewer tokens than inputs: H is singular
@pytest.mark.parametrize("shape", [(24, 40), (60, 40)])
@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(1)])
def test_the_optimum_is_that_of_eckart_and_young(shape, tokens, generator):
    weight, metric = make(*shape, tokens=tokens)
    values, vectors = torch.linalg.eigh(metric.hessian.double())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    singular = torch.linalg.svdvals(weight.double() @ root)
    total = float(singular.square().sum())
    for rank in (1, 6, 11):
        factors = best_factors(weight, metric, rank, generator)
        error, optimum = metric.energy(residual(weight, factors)), float(singular[rank:].square().sum())
        assert optimum * (1 - 1e-4) - 1e-5 * total <= error <= optimum * (1 + 1e-3) + 1e-5 * total
    assert metric.repaired == (0 if tokens == 200 else metric.repaired) and (tokens == 200 or metric.repaired > 0)


def test_perturbations_never_improve_the_optimum():
    weight, metric = make()
    factors = best_factors(weight, metric, 4)
    least = metric.energy(residual(weight, factors))
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        left = factors.left + 0.01 * torch.randn(factors.left.shape, generator=noise)
        right = factors.right + 0.01 * torch.randn(factors.right.shape, generator=noise)
        assert metric.energy(weight - left.T @ right) > least


def test_without_a_hessian_it_is_the_singular_value_decomposition():
    weight, _ = make()
    singular = torch.linalg.svdvals(weight)
    error = residual(weight, best_factors(weight, Metric(), 5)).square().sum()
    torch.testing.assert_close(error, singular[5:].square().sum(), rtol=1e-4, atol=0)
    whole = best_factors(weight, Metric(), 24, torch.Generator().manual_seed(0))
    assert residual(weight, whole).abs().max() < 1e-4


def test_a_basis_becomes_orthonormal_and_keeps_its_span():
    basis = torch.randn(60, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -5, 12)
    found = orthonormal(basis)
    torch.testing.assert_close(found.T @ found, torch.eye(12), rtol=0, atol=1e-6)
    assert (basis - found @ (found.T @ basis)).norm(dim=0).max() < 1e-5 * basis.norm()
    twice = orthonormal(torch.cat((basis[:, :4], basis[:, :4]), 1))  # of rank 4
    torch.testing.assert_close(twice[:, :4].T @ twice[:, :4], torch.eye(4), rtol=0, atol=1e-6)
    assert bool(twice.isfinite().all()) and not orthonormal(torch.zeros(5, 2)).count_nonzero()


def coarse(values, importance):
    """Six levels on each side of 0 per row."""
    step = values.abs().amax(1, keepdim=True).clamp_min(1e-8) / 6
    return Dense((values / step).round() * step)


def test_rounded_factors_keep_the_best_pair_and_get_better_by_alternating():
    weight, metric = make()
    start = best_factors(weight, metric, 8).left
    once, more = (fit_factors(weight, metric, start, coarse, coarse, count) for count in (0, 12))
    assert more.error == pytest.approx(metric.energy(weight - more.dequantize()), rel=1e-4)
    assert more.error <= min(more.path) and len(more.path) == 13 and more.error < once.error
    assert torch.equal(once.left.dequantize(), coarse(start, None).dequantize())
    zeros = fit_factors(torch.zeros_like(weight), metric, start, coarse, coarse, 2)
    assert zeros.error == 0


@pytest.mark.parametrize("rank", [0, 25])
def test_a_rank_that_cannot_be(rank):
    weight, metric = make()
    with pytest.raises(FeatherweightError, match="exceeds the smaller side 24" if rank else "1 to 24"):
        best_factors(weight, metric, rank)


def test_alternating_keeps_the_best_state_in_which_every_part_was_fitted():
    weight = torch.ones(2, 2)
    offers = {"one": iter([1.0, 0.0, 0.3]), "two": iter([0.5, 0.9, 0.1])}
    updates = {name: lambda rest, parts, offer=offer: Dense(torch.full((2, 2), next(offer))) for name, offer in offers.items()}
    found = alternate(weight, updates, lambda error: float(error.square().sum()), 3)
    # "one" alone is exact at first, but "two" had not been fitted then
    assert found.path == pytest.approx((4 * 0.5**2, 4 * 0.1**2, 4 * 0.2**2)) and found.round == 2
    assert found.error == pytest.approx(4 * 0.1**2) and float(found.parts["two"].dequantize()[0, 0]) == pytest.approx(0.9)
