"""The walk against its oracles: textbook GPTQ, LDLQ in reverse, Optimal Brain Surgeon, round to nearest."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.exact import Exact
from featherweight.grids.two_level import TwoLevelGrid
from featherweight.grids.uniform import UniformGrid
from featherweight.masks.patterns import Pattern
from featherweight.methods.dropping import Select
from featherweight.solvers.damping import factorise
from featherweight.solvers.nearest import round_to_nearest
from featherweight.solvers.outliers import KeepOutliers, outlier_scale
from featherweight.solvers.reference import Drops, Keeps, textbook
from featherweight.solvers.sweep import sweep

FITS = ("minmax", "weighted")


def agree(first, second, share=0.0):
    """Equal codes, up to a share of entries that different summation orders put on the other side of a half."""
    different = (first.codes != second.codes).float().mean()
    assert different <= share, f"{different:.4%} of the codes differ"
    if share == 0:
        torch.testing.assert_close(first.decoded, second.decoded)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 16, 40, 96])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_textbook_gptq(problem, bits, group_size, symmetric):
    weight, hessian = problem()
    grid = UniformGrid(bits, symmetric, "weighted")
    fast = sweep(weight, factorise(hessian), grid, group_size)
    slow = textbook(weight, hessian, grid, group_size, dtype=torch.float64)
    agree(fast, slow, share=0.004)
    assert fast.scales.shape == slow.scales.shape


def ratio(factor, weight, first, second):
    """Of the objectives of two solutions."""
    one, other = (factor.row_energy(weight - each.decoded).sum() for each in (first, second))
    return float(one / other)


@pytest.mark.parametrize(("pattern", "span"), [("layer", 32), ("2:4", 4)])
@pytest.mark.parametrize("bits", [None, 4])
def test_pruning_is_the_textbooks(problem, pattern, span, bits):
    weight, hessian = problem()
    rule, factor = Pattern.parse(pattern, 0.5 if pattern == "layer" else None), factorise(hessian)
    grid = Exact(torch.bfloat16) if bits is None else UniformGrid(bits)
    rows, width = weight.shape
    decision = Select(rule, span, [rows], width, weight.device, True, None if bits is None else factor.feedback())
    fast = sweep(weight, factor, grid, None if bits is None else 32, decision=decision)
    drops = Drops(span, rule.dropped, bits is not None)
    slow = textbook(weight, hessian, grid, None if bits is None else 32, dtype=torch.float64, drops=drops)
    assert ((fast.decoded == 0) != (slow.decoded == 0)).float().mean() < 0.01
    assert ratio(factor, weight, fast, slow) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("fit", "narrow"), [("minmax", False), ("weighted", True)])
def test_outliers_are_the_textbooks(problem, fit, narrow):
    weight, hessian = problem()
    order = hessian.diagonal().argsort(descending=True)
    factor, grid = factorise(hessian, order=order), TwoLevelGrid(3, second_group_size=8, fit_by=fit)
    threshold = 0.2 * outlier_scale(weight, factor)
    decision = KeepOutliers(grid, factor, threshold, len(weight), narrow=narrow)
    fast = sweep(weight, factor, grid, 16, decision=decision)
    keeps = Keeps(threshold, narrow)
    slow = textbook(weight, hessian, grid, 16, order=order, dtype=torch.float64, keeps=keeps)
    assert decision.count > 0
    assert ratio(factor, weight, fast, slow) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("block", [1, 8, 24, 96, 128])
@pytest.mark.parametrize("group_size", [None, 8, 20, 32])
def test_block_size_changes_nothing(problem, block, group_size):
    weight, hessian = problem(width=96)
    grid = UniformGrid(3)
    agree(
        sweep(weight, factorise(hessian), grid, group_size, block=block),
        sweep(weight, factorise(hessian), grid, group_size),
        0.003,
    )


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("group_size", [None, 16, 40])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_identity_hessian_is_round_to_nearest(problem, fit, group_size, bits):
    weight, _ = problem()
    grid = UniformGrid(bits, fit_by=fit)
    swept = sweep(weight, factorise(torch.eye(96)), grid, group_size)
    nearest = round_to_nearest(weight, grid, group_size)
    assert torch.equal(swept.codes, nearest.codes)
    assert torch.equal(swept.decoded, nearest.decoded)
    assert torch.equal(swept.scales, nearest.scales) and torch.equal(swept.zeros, nearest.zeros)


def test_equals_ldlq_on_the_reversed_columns(problem):
    weight, hessian = problem(width=40, dtype=torch.float64)
    grid = UniformGrid(3, scale_dtype=torch.float32)
    parameters = grid.fit(weight)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    unit = lower / lower.diagonal()
    backwards, rounded = weight.flip(1), torch.zeros_like(weight)
    for column in reversed(range(40)):  # LDLQ: the last column first, feedback from those after it
        fed = backwards[:, column] + (backwards - rounded)[:, column + 1 :] @ unit[column + 1 :, column]
        rounded[:, column] = grid.decode(grid.encode(fed[:, None], parameters), parameters)[:, 0]
    ours = sweep(weight.float(), factorise(hessian.float()), grid)
    assert (ours.decoded.double() - rounded.flip(1)).abs().gt(1e-6).float().mean() < 0.003


@pytest.mark.parametrize("seed", range(5))
def test_optimal_brain_surgeon_with_recomputed_inverses(seed, problem):
    weight, hessian = problem(rows=5, width=8, seed=seed, dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    grid = UniformGrid(3, scale_dtype=torch.float32)
    parameters = grid.fit(weight)
    left = weight.clone()
    for column in range(8):  # fix one column, move the rest by -error / [H^-1]_00 * [H^-1]_0: of what is left
        inverse = torch.linalg.inv(damped[column:, column:])
        error = left[:, column] - grid.decode(grid.encode(left[:, column, None], parameters), parameters)[:, 0]
        left[:, column:] -= (error / inverse[0, 0])[:, None] * inverse[0]
    ours = sweep(weight.float(), factorise(hessian.float()), grid)
    torch.testing.assert_close(ours.decoded, left.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("fit", FITS)
def test_beats_round_to_nearest_on_the_mean_of_twenty_seeds(problem, objective, bits, fit):
    ratios = []
    for seed in range(20):
        weight, hessian = problem(seed=seed)
        grid = UniformGrid(bits, fit_by=fit)
        swept, nearest = sweep(weight, factorise(hessian), grid, 32), round_to_nearest(weight, grid, 32, hessian.diagonal())
        ratios.append(objective(weight, swept.decoded, hessian) / objective(weight, nearest.decoded, hessian))
    assert sum(ratios) / 20 < 0.6
    assert max(ratios) < 1.0


@pytest.mark.parametrize("bits", [2, 3])
def test_weighted_fit_beats_minmax(problem, objective, bits):
    ratios = []
    for seed in range(8):
        weight, hessian = problem(seed=seed)
        errors = [
            objective(weight, sweep(weight, factorise(hessian), UniformGrid(bits, fit_by=fit), 32).decoded, hessian)
            for fit in ("weighted", "minmax")
        ]
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / 8 < 0.97


def test_loss_is_the_objective(problem, objective):
    weight, hessian = problem()
    factor = factorise(hessian, order=torch.randperm(96, generator=torch.Generator().manual_seed(0)))
    solved = sweep(weight, factor, UniformGrid(3), 16, static_groups=True)
    error = weight - solved.decoded
    expected = objective(weight, solved.decoded, hessian)
    assert float(factor.without_damping(solved.loss, error).sum()) == pytest.approx(expected, rel=1e-4)
    assert float(factor.row_energy(error).sum()) == pytest.approx(expected, rel=1e-4)


def test_loss_matches_a_float64_walk(problem, objective):
    weight, hessian = problem(width=64)
    grid = UniformGrid(4)
    ours = sweep(weight, factorise(hessian), grid, 16)
    exact = textbook(weight, hessian, grid, 16, dtype=torch.float64)
    ratio = objective(weight, ours.decoded, hessian) / objective(weight, exact.decoded, hessian)
    assert ratio == pytest.approx(1.0, abs=0.01)


def test_order_of_a_sorted_hessian_is_no_order(problem):
    weight, hessian = problem()
    by_size = hessian.diagonal().argsort(descending=True)
    weight, hessian = weight[:, by_size], hessian[by_size][:, by_size]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    grid = UniformGrid(3)
    for static in (False, True):
        ordered = sweep(weight, factorise(hessian, order=order), grid, 16, static_groups=static)
        assert torch.equal(ordered.codes, sweep(weight, factorise(hessian), grid, 16).codes)
        assert ordered.group_index is None


def test_dynamic_groups_equal_a_permuted_problem(problem):
    weight, hessian = problem()
    order = hessian.diagonal().argsort(descending=True)
    grid = UniformGrid(3)
    solved = sweep(weight, factorise(hessian, order=order), grid, 16)
    permuted = sweep(weight[:, order], factorise(hessian[order][:, order]), grid, 16)
    assert torch.equal(solved.codes[:, order], permuted.codes)
    assert torch.equal(solved.group_index[order], torch.arange(96) // 16)
    rebuilt = solved.scales[:, solved.group_index] * (solved.codes - solved.zeros[:, solved.group_index])
    assert torch.equal(rebuilt, solved.decoded)
    agree(solved, textbook(weight, hessian, grid, 16, order=order), 0.003)


def test_static_groups_keep_the_stored_order(problem, objective):
    weight, hessian = problem()
    order = hessian.diagonal().argsort(descending=True)
    solved = sweep(weight, factorise(hessian, order=order), UniformGrid(3), 16, static_groups=True)
    assert solved.group_index is None
    scales, zeros = (each.repeat_interleave(16, 1) for each in (solved.scales, solved.zeros))
    assert torch.equal(scales * (solved.codes - zeros), solved.decoded)
    nearest = round_to_nearest(weight, UniformGrid(3), 16)
    assert objective(weight, solved.decoded, hessian) < objective(weight, nearest.decoded, hessian)


def test_stale_groups_fit_at_the_start_of_the_block(problem):
    weight, hessian = problem(width=96)
    grid = UniformGrid(3)
    stale = sweep(weight, factorise(hessian), grid, 16, stale_groups=True, block=96)
    static = round_to_nearest(weight, grid, 16)
    assert torch.equal(stale.scales, static.scales) and torch.equal(stale.zeros, static.zeros)
    assert not torch.equal(sweep(weight, factorise(hessian), grid, 16).scales, static.scales)


def test_dead_inputs_become_zero_and_change_nothing(problem):
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    factor = factorise(hessian)
    solved = sweep(weight, factor, UniformGrid(4))
    assert factor.dead.nonzero().tolist() == [[5]]
    assert solved.decoded[:, 5].abs().max() == 0
    alive = torch.arange(96) != 5
    parameters_alone = sweep(weight[:, alive], factorise(hessian[alive][:, alive]), UniformGrid(4))
    assert (solved.codes[:, alive] != parameters_alone.codes).float().mean() < 0.1  # the damping differs a little


def test_stacked_rows_are_independent(problem):
    weight, hessian = problem()
    factor, grid = factorise(hessian), UniformGrid(3, fit_by="weighted")
    whole = sweep(weight, factor, grid, 16)
    parts = [sweep(weight[rows], factor, grid, 16) for rows in (slice(0, 10), slice(10, 24))]
    assert (whole.codes != torch.cat([part.codes for part in parts])).float().mean() < 0.003


def test_sizes_must_fit(problem):
    weight, hessian = problem()
    with pytest.raises(FeatherweightError, match="do not fit"):
        sweep(weight[:, :50], factorise(hessian), UniformGrid(4))


def test_what_the_kernels_read_is_contiguous():
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    assert factorise(x.T @ x).feedback().is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_decides_as_a_cpu_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 320, generator=generator) @ torch.randn(320, 320, generator=generator)
    weight, hessian = torch.randn(200, 320, generator=generator), x.T @ x / len(x)
    here = sweep(weight, factorise(hessian), UniformGrid(4), 128)
    there = sweep(weight.cuda(), factorise(hessian.cuda()), UniformGrid(4), 128)
    assert (here.codes == there.codes.cpu()).float().mean() > 0.98
    loss = [
        float(((weight - solved.decoded.cpu()) @ hessian * (weight - solved.decoded.cpu())).sum()) for solved in (here, there)
    ]
    assert loss[1] == pytest.approx(loss[0], rel=0.02)
