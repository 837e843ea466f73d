"""Errors of one linear against the outputs written out."""

import math

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.evaluation.linears import cosine_similarity, output_cosine, relative_output_error


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight, error = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    return weight, weight + 0.1 * error, torch.randn(40, 5, generator=generator, dtype=torch.float64)


def test_relative_error_and_cosine_are_those_of_the_outputs(problem):
    weight, approximation, x = problem
    ours, theirs = x @ weight.T, x @ approximation.T
    hessian = x.T @ x
    for scale in (1, 1 / 40):
        measured = relative_output_error(weight, approximation, hessian * scale, dtype=torch.float64)
        assert measured == pytest.approx(float((ours - theirs).square().sum() / ours.square().sum()), rel=1e-12)
        cosine = output_cosine(weight, approximation, hessian * scale, dtype=torch.float64)
        assert cosine == pytest.approx(float((ours * theirs).sum() / (ours.norm() * theirs.norm())), rel=1e-12)


def test_a_diagonal_and_no_hessian(problem):
    weight, approximation, x = problem
    diagonal = x.square().sum(0)
    full = relative_output_error(weight, approximation, diagonal.diag(), dtype=torch.float64)
    assert relative_output_error(weight, approximation, diagonal, dtype=torch.float64) == pytest.approx(full)
    plain = float((weight - approximation).square().sum() / weight.square().sum())
    assert relative_output_error(weight, approximation) == pytest.approx(plain, rel=1e-5)


def test_the_ends_of_the_scale(problem):
    weight, _, x = problem
    hessian = x.T @ x
    assert relative_output_error(weight, weight, hessian) == 0
    assert relative_output_error(weight, torch.zeros_like(weight), hessian) == pytest.approx(1)
    assert output_cosine(weight, 3 * weight, hessian) == pytest.approx(1)
    assert output_cosine(weight, -weight, hessian) == pytest.approx(-1)
    assert output_cosine(weight, torch.zeros_like(weight)) == 0
    assert relative_output_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert relative_output_error(torch.zeros(2, 3), torch.ones(2, 3)) == math.inf


def test_cosine_of_activations_is_the_mean_over_tokens():
    left = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    right = torch.tensor([[[5.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    assert cosine_similarity(left, right) == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_shapes_that_do_not_belong_together():
    with pytest.raises(FeatherweightError, match="do not belong together"):
        relative_output_error(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(FeatherweightError, match="do not belong together"):
        output_cosine(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(FeatherweightError, match="different shapes"):
        cosine_similarity(torch.ones(2, 3), torch.ones(3, 2))
