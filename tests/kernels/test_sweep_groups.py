"""Fitting and walking groups in one kernel, against fitting and walking one after the other."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.grids.uniform import UniformGrid
from featherweight.kernels.cpu import compiler
from featherweight.kernels.cpu.fit import fit_groups as fit_on_cpu
from featherweight.kernels.reference.fit_groups import fit_groups as fit_reference
from featherweight.kernels.reference.sweep_groups import sweep_groups as reference
from featherweight.solvers import decision as decision_room
from featherweight.solvers.damping import factorise
from featherweight.solvers.fitting import fitting_of
from featherweight.solvers.sweep import sweep

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: Columns, rows, group size, grid.
CASES = [
    (32, 33, 32, UniformGrid(4)),
    (24, 9, 16, UniformGrid(3, fit_by="weighted")),
    (16, 20, 16, UniformGrid(2, symmetric=True, fit_by="weighted", scale_dtype=torch.bfloat16)),
    (24, 9, 16, UniformGrid(8, symmetric=True, scale_dtype=torch.float32)),
    (24, 9, 16, UniformGrid(3, fit_by="mse")),
]


def arguments(columns, rows, size, device="cpu", seed=0):
    """Arguments of the op, freshly made; one row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(columns, rows, generator=generator) * 0.05
    original = target + 0.01 * torch.randn(columns, rows, generator=generator)
    target[:, 3], original[:, 3] = 0, 0
    feedback = torch.randn(columns, columns, generator=generator).mul_(0.1).triu(1) + torch.eye(columns)
    groups = -(-columns // size)
    made = [target, original, feedback, torch.rand(columns, generator=generator), torch.full((groups, rows), torch.nan)]
    made += [torch.full((groups, rows), torch.nan), torch.zeros(columns, rows, dtype=torch.uint8)]
    return [
        *(each.to(device) for each in made),
        torch.full((columns, rows), torch.nan, device=device),
        torch.ones(rows).to(device),
    ]


def run(kernel, made, size, grid):
    """Scales, zeros, codes, values, errors, loss."""
    target, original, feedback, importance, scale, zero, codes, error, loss = made
    kernel(target, original, feedback, importance, scale, zero, size, fitting_of(grid), codes, error, loss)
    return [each.cpu() for each in (scale, zero, codes, target, error, loss)]


def compare(kernel, columns, rows, size, grid, device="cpu"):
    """Rows whose grids and codes are alike (a value next to a tie may go either way) are most, and alike in all."""
    ours = run(kernel, arguments(columns, rows, size, device), size, grid)
    theirs = run(reference, arguments(columns, rows, size), size, grid)
    assert not any(torch.isnan(each).any() for each in ours)
    alike = (ours[2] == theirs[2]).all(0) & torch.isclose(ours[0], theirs[0], rtol=1e-4).all(0) & (ours[1] == theirs[1]).all(0)
    assert alike.float().mean() > 0.85
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[..., alike], other[..., alike], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours[5].sum(), theirs[5].sum(), rtol=0.02, atol=0)


def compare_fits(kernel, device="cpu", ways=("minmax", "weighted", "mse")):
    """Grids of all groups at once, with and without weighing."""
    generator = torch.Generator().manual_seed(1)
    weight, importance = torch.randn(32, 24, generator=generator), torch.rand(24, generator=generator)
    for grid in (grid for *_, grid in CASES if grid.fit_by in ways):
        for weigh in (None, importance):
            there = None if weigh is None else weigh.to(device)
            ours = kernel(weight.to(device), there, 12, fitting_of(grid))
            theirs = fit_reference(weight, weigh, 12, fitting_of(grid))
            alike = torch.isclose(ours[0].cpu(), theirs[0], rtol=1e-4) & (ours[1].cpu() == theirs[1])
            assert alike.float().mean() > 0.97


@pytest.mark.skipif(bool(compiler.missing("fit")), reason="no C compiler")
def test_fits_on_a_cpu():
    compare_fits(fit_on_cpu, ways=("minmax", "weighted"))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).half().float()
        scale, zero = fit_on_cpu(weight[:, :128].T.contiguous().T, None, 128, fitting_of(UniformGrid(4)))  # not contiguous
        exact = UniformGrid(4).fit(weight[:, :128])
        assert torch.equal(scale, exact.scale) and torch.equal(zero, exact.zero)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled cases run here")
def test_groups_in_the_interpreter():
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_sweep_groups import CASES, compare, compare_fits\n"
        "from featherweight.kernels.triton.sweep_groups import fit_groups, sweep_groups\n"
        "compare_fits(fit_groups)\n"
        "[compare(sweep_groups, *case) for case in CASES]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_groups_compiled():
    from featherweight.kernels.triton.sweep_groups import fit_groups, sweep_groups

    compare_fits(fit_groups, "cuda")
    for case in CASES:
        compare(sweep_groups, *case, "cuda")


@pytest.mark.parametrize("fit", ["minmax", "weighted"])
@pytest.mark.parametrize("size", [16, 48, 128])
def test_a_walk_with_the_kernel_is_the_walk_without(monkeypatch, size, fit):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 300, generator=generator) @ torch.randn(300, 300, generator=generator)
    weight, factor, grid = torch.randn(20, 300, generator=generator), factorise(x.T @ x / 900), UniformGrid(4, fit_by=fit)
    without = sweep(weight, factor, grid, size)
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        reference(*arguments)

    monkeypatch.setattr(decision_room, "accelerated", lambda *arguments: counted)
    fused = sweep(weight, factor, grid, size)
    assert calls and (fused.codes != without.codes).float().mean() < 0.01
    torch.testing.assert_close(fused.loss.sum(), without.loss.sum(), rtol=1e-3, atol=0)
