"""The factor: what it is, how damping grows, what it says when nothing helps."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.solvers.damping import factorise


def test_factor_of_the_damped_hessian(problem):
    _, hessian = problem()
    factor = factorise(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    torch.testing.assert_close(factor.upper @ factor.upper.T, damped, rtol=1e-4, atol=1e-4)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.attempts, factor.damping_used, factor.dtype) == (1, 0.01, torch.float32)


def test_inverse_is_the_factor_of_gptq(problem):
    _, hessian = problem(dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    theirs = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    ours = torch.linalg.inv(factorise(hessian).upper.double())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_order_permutes(problem):
    _, hessian = problem()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(factorise(hessian, order=order).upper, factorise(hessian[order][:, order]).upper)


def test_scale_of_the_hessian_does_not_matter(problem):
    _, hessian = problem()
    torch.testing.assert_close(factorise(hessian).feedback(), factorise(hessian * 1024).feedback())


def test_a_singular_hessian_is_damped_until_it_has_a_factor():
    x = torch.ones(4, 64)
    factor = factorise(x.T @ x, 0.0)
    assert factor.attempts > 1 and factor.damping_used > 0 and torch.isfinite(factor.upper).all()


def test_an_indefinite_matrix_is_refused_with_its_story():
    hessian = torch.eye(4) + 10 * (torch.ones(4, 4) - torch.eye(4))
    with pytest.raises(FeatherweightError) as caught:
        factorise(hessian, name="model.layers.3.mlp.down_proj", samples=2)
    for part in ("model.layers.3.mlp.down_proj", "2 samples for 4 inputs", "condition number", "attempts"):
        assert part in str(caught.value)


def test_not_a_number_is_refused():
    hessian = torch.eye(4)
    hessian[2, 2] = torch.nan
    with pytest.raises(FeatherweightError, match="not finite"):
        factorise(hessian, name="q_proj")


def test_double_precision_comes_before_more_damping():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    hessian = ((basis * torch.logspace(0, -9, 64, dtype=torch.float64)) @ basis.T).double()
    factor = factorise(hessian, 0.0)
    assert factor.dtype == torch.float64 and factor.damping_used == 0.0 and factor.attempts == 2
