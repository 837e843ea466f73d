"""Seeded weights and correlated inputs."""

import pytest
import torch


def make_problem(rows=24, width=96, tokens=400, seed=0, dtype=torch.float32):
    """`W [rows, width]` and the Hessian `[width, width]` of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + 0.3
    scales = torch.rand(width, generator=generator) * 2 + 0.1
    x = (torch.randn(tokens, width, generator=generator) @ mixing) * scales
    weight = torch.randn(rows, width, generator=generator) * 0.05
    return weight.to(dtype), (x.T.double() @ x.double() / tokens).to(dtype)


def hessian_error(weight, decoded, hessian):
    error = (weight - decoded).double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.fixture
def problem():
    return make_problem


@pytest.fixture
def objective():
    return hessian_error
