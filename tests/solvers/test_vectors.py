"""Vector grids in the walk and in the descent: a slow block LDLQ, properties of the objective, inputs that fill no vector."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters
from featherweight.grids.e8 import E8Grid
from featherweight.solvers.damping import factorise
from featherweight.solvers.descent import descend
from featherweight.solvers.sweep import sweep
from featherweight.solvers.vectors import solve_vectors


def make(rows=16, width=48, seed=0):
    """A weight, and a Hessian without outstanding inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(rows, width, generator=generator) * 0.1, x.T @ x / len(x)


def objective(error, hessian):
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [8, 24, 128])
def test_the_walk_is_block_ldlq(bits, block):
    """Against the slow form: after each vector the remaining weights are solved for, `w_r += e_k H_kr H_rr⁻¹`."""
    weight, hessian = make()
    grid, factor = E8Grid(bits, 0.9), factorise(hessian)
    damped = factor.damped(hessian).double()
    parameters, target = grid.fit(weight), weight.double()
    codes = []
    for start in range(0, 48, 8):
        now, rest = slice(start, start + 8), slice(start + 8, 48)
        codes.append(grid.encode(target[:, now].float(), parameters))
        error = target[:, now] - grid.decode(codes[-1], parameters).double()
        target[:, now] -= error
        target[:, rest] += error @ torch.linalg.solve(damped[rest, rest], damped[rest, now]).T
    swept = sweep(weight, factor, grid, block=block)
    assert torch.equal(swept.codes, torch.cat(codes, 1))
    torch.testing.assert_close(swept.decoded, target.float())
    assert float(swept.loss.sum()) == pytest.approx(objective(weight.double() - target, damped), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_beats_rounding_and_no_pass_loses(bits):
    walked, nearest, descended = [], [], []
    for seed in range(5):
        weight, hessian = make(seed=seed)
        factor, grid = factorise(hessian), E8Grid(bits, 1.0)
        damped, parameters = factor.damped(hessian), grid.fit(weight)
        swept = sweep(weight, factor, grid)
        done = descend(weight, damped, grid, swept.codes, swept.decoded, parameters.scale)
        assert all(after <= before * (1 + 1e-6) for before, after in zip(done.objectives, done.objectives[1:], strict=False))
        assert objective(weight - done.decoded, damped) == pytest.approx(done.objectives[-1], rel=1e-3)
        stored = GridParameters(done.scale, torch.zeros_like(done.scale))
        assert torch.equal(grid.decode(done.codes, stored), done.decoded)
        for factor_off in (0.99, 1.01):
            assert objective(weight - factor_off * done.decoded, damped) > done.objectives[-1], "no scale is better"
        walked.append(objective(weight - swept.decoded, damped))
        nearest.append(objective(weight - grid.decode(grid.encode(weight, parameters), parameters), damped))
        descended.append(done.objectives[-1])
    assert sum(walked) < 0.9 * sum(nearest)
    assert sum(descended) < 0.97 * sum(walked)


def test_with_an_identity_every_vector_is_rounded_by_itself():
    weight, grid = make()[0], E8Grid(2, 1.0)
    hessian = torch.eye(48)
    parameters = grid.fit(weight)
    (solved,) = solve_vectors([weight], hessian, factorise(hessian), grid)
    assert torch.equal(solved.codes, grid.encode(weight, parameters))
    assert solved.objectives[-1] == pytest.approx(solved.objectives[0])


def test_linears_of_one_input_are_solved_as_if_alone_each_on_its_scale():
    first, hessian = make()
    second, factor = 30 * make(rows=8, seed=1)[0], factorise(hessian)
    together = solve_vectors([first, second], hessian, factor, E8Grid(2), passes=2)
    for weight, solved in zip((first, second), together, strict=True):
        (alone,) = solve_vectors([weight], hessian, factor, E8Grid(2), passes=2)
        assert torch.equal(solved.codes, alone.codes) and torch.equal(solved.scale, alone.scale)
        torch.testing.assert_close(solved.decoded, alone.decoded)


def test_inputs_that_fill_no_vector():
    weight, hessian = make(width=45)
    factor, grid = factorise(hessian), E8Grid(3)
    (solved,) = solve_vectors([weight], hessian, factor, grid, passes=2)
    assert solved.decoded.shape == weight.shape and solved.codes.shape == (16, 6)
    nearest = grid.decode(grid.encode(torch.nn.functional.pad(weight, (0, 3)), grid.fit(weight)), grid.fit(weight))[:, :45]
    assert objective(weight - solved.decoded, hessian) < 0.9 * objective(weight - nearest, hessian)
    with pytest.raises(FeatherweightError, match="cut the vectors"):
        sweep(weight, factor, grid)
    with pytest.raises(FeatherweightError, match="fill the inputs"):
        descend(weight, hessian, grid, solved.codes, solved.decoded, torch.ones(16, 1))
