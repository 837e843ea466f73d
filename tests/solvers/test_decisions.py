"""Decisions plug into the walk without a change to it: dropping, N:M, keeping, vectors."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters
from featherweight.grids.uniform import UniformGrid
from featherweight.solvers.damping import factorise
from featherweight.solvers.decision import Decision
from featherweight.solvers.sweep import sweep


class Lossless:
    """A grid that keeps its values: what is left is dropping alone."""

    vector_size, rounding = 1, None

    def fit(self, values, importance=None):
        return GridParameters(torch.ones(len(values), 1), torch.zeros(len(values), 1))

    def encode(self, values, parameters):
        self.seen = values.clone()
        return torch.zeros_like(values)

    def decode(self, codes, parameters):
        return self.seen


class DropFixed(Decision):
    span = 4

    def __init__(self, mask):
        self.mask = mask

    def start_span(self, first, values, importance):
        return self.mask[first : first + 4]


class DropSmallest(Decision):
    """Half of every span, over all rows (SparseGPT)."""

    def __init__(self, span):
        self.span = span

    def start_span(self, first, values, importance):
        scores = values.square() * importance[:, None]
        threshold = scores.flatten().kthvalue(scores.numel() // 2).values
        return scores <= threshold


class TwoOfFour(Decision):
    span = 4

    def start_span(self, first, values, importance):
        order = (values.square() * importance[:, None]).argsort(0)
        return torch.zeros_like(values, dtype=torch.bool).scatter_(0, order[:2], True)


class KeepLarge(Decision):
    looks_at_columns = True

    def __init__(self, limit):
        self.limit, self.kept = limit, {}

    def column(self, first, values, decoded, importance):
        keep = (values - decoded).abs() > self.limit
        self.kept[first] = keep[0]
        return torch.where(keep, values, decoded)


@pytest.mark.parametrize("seed", range(5))
def test_dropping_equals_the_closed_form_of_optimal_brain_surgeon(problem, seed):
    weight, hessian = problem(rows=6, width=8, seed=seed)
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed)) < 0.4
    ours = sweep(weight, factorise(hessian), Lossless(), decision=DropFixed(mask)).decoded
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(8)
    for row in range(6):
        left = weight[row].double()
        for column in mask[:, row].nonzero()[:, 0].tolist():
            inverse = torch.linalg.inv(damped[column:, column:])
            left[column:] -= left[column].clone() / inverse[0, 0] * inverse[0]
        torch.testing.assert_close(ours[row], left.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [16, 128])
def test_dropping_with_an_identity_hessian_is_magnitude_in_spans(problem, block):
    weight, _ = problem()
    ours = sweep(weight, factorise(torch.eye(96)), Lossless(), decision=DropSmallest(32), block=block).decoded
    for start in range(0, 96, 32):
        part = weight[:, start : start + 32]
        threshold = part.abs().flatten().kthvalue(part.numel() // 2).values
        torch.testing.assert_close(ours[:, start : start + 32], torch.where(part.abs() > threshold, part, 0.0))


@pytest.mark.parametrize("group_size", [None, 16, 40])
def test_joint_keeps_zeros_exact_and_compensates(problem, objective, group_size):
    weight, hessian = problem()
    grid = UniformGrid(4)
    solved = sweep(weight, factorise(hessian), grid, group_size, decision=TwoOfFour())
    zeros = (solved.decoded == 0).view(24, 24, 4).sum(-1)
    assert zeros.min() >= 2
    size = group_size or 96
    index = torch.arange(96) // size
    assert torch.equal(solved.scales[:, index] * (solved.codes - solved.zeros[:, index]), solved.decoded)
    masked = torch.where(solved.decoded == 0, 0.0, weight)
    assert objective(weight, solved.decoded, hessian) < objective(weight, masked, hessian)


def test_fused_and_single_columns_agree(problem):
    weight, hessian = problem()
    never = KeepLarge(torch.inf)
    slow = sweep(weight, factorise(hessian), UniformGrid(3), 16, decision=never)
    fast = sweep(weight, factorise(hessian), UniformGrid(3), 16)
    assert (slow.codes != fast.codes).float().mean() < 0.003
    torch.testing.assert_close(slow.loss.sum(), fast.loss.sum(), rtol=0.01, atol=0)


def test_keeping_some_exact_lowers_the_error(problem, objective):
    weight, hessian = problem()
    keep = KeepLarge(0.02)
    solved = sweep(weight, factorise(hessian), UniformGrid(2), 32, decision=keep)
    plain = sweep(weight, factorise(hessian), UniformGrid(2), 32)
    assert 0 < torch.stack(list(keep.kept.values())).float().mean() < 0.6
    assert objective(weight, solved.decoded, hessian) < objective(weight, plain.decoded, hessian)


class Pairs:
    """Rounds pairs to multiples of a step; a stand-in for a lattice."""

    vector_size, rounding = 2, None

    def fit(self, values, importance=None):
        return GridParameters(torch.full((len(values), 1), 0.02), torch.zeros(len(values), 1))

    def encode(self, values, parameters):
        self.levels = torch.round(values / parameters.scale)
        return (self.levels[:, :1] + 50) * 100 + self.levels[:, 1:] + 50

    def decode(self, codes, parameters):
        first, second = codes.div(100, rounding_mode="floor"), codes % 100
        return (torch.cat([first, second], 1) - 50) * parameters.scale


def test_vectors_of_columns_are_decided_together(problem, objective):
    weight, hessian = problem()
    factor = factorise(hessian)
    feedback = factor.feedback(2)
    assert torch.allclose(feedback[:2, :2], torch.eye(2), atol=1e-5) and feedback[2:, :2].abs().max() < 1e-6
    solved = sweep(weight, factor, Pairs())
    nearest = torch.round(weight / 0.02) * 0.02
    assert objective(weight, solved.decoded, hessian) < 0.6 * objective(weight, nearest, hessian)
    assert solved.codes.shape == (24, 48)
    error = weight - solved.decoded
    assert float(factor.without_damping(solved.loss, error).sum()) == pytest.approx(
        objective(weight, solved.decoded, hessian), rel=1e-3
    )
    with pytest.raises(FeatherweightError, match="multiples of 2"):
        sweep(weight, factor, Pairs(), 3)
