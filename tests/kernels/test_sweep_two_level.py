"""SpQR's groups in one kernel, against its fit and walk one after the other."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.grids.two_level import TwoLevelGrid
from featherweight.kernels.reference.sweep_two_level import sweep_two_level as reference
from featherweight.solvers import outliers
from featherweight.solvers.damping import factorise
from featherweight.solvers.outliers import KeepOutliers
from featherweight.solvers.sweep import sweep

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: Rows, inputs, rows that share a second grid, threshold, narrow residuals, whether fits leave values out, and what they go by.
CASES = [
    (40, 48, 16, 0.02, False, True, "minmax"),
    (70, 32, 64, 0.05, True, True, "minmax"),
    (24, 32, 8, float("inf"), False, False, "minmax"),
    (40, 48, 16, 0.02, False, True, "weighted"),
    (70, 32, 64, float("inf"), False, False, "weighted"),
]


def solve(kernel, case, device="cpu"):
    """Solution and decision; with the walk's own parts where there is no kernel."""
    rows, inputs, second, threshold, narrow, leave_one_out, fit = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    weight = torch.randn(rows, inputs, generator=generator)
    weight[3] = 0
    weight, hessian = weight.to(device), (x.T @ x / 400).to(device)
    factor, grid = (
        factorise(hessian, order=hessian.diagonal().argsort(descending=True)),
        TwoLevelGrid(3, 3, 3, second, fit_by=fit),
    )
    decision = KeepOutliers(grid, factor, threshold, rows, leave_one_out, narrow=narrow)
    before = outliers.accelerated
    outliers.accelerated = lambda *arguments: kernel
    try:
        return sweep(weight, factor, grid, 16, decision=decision), decision
    finally:
        outliers.accelerated = before


def compare(kernel, case, device="cpu"):
    """The stored form of all but a few rows is the same: a value next to a tie may go either way, and takes its row along."""
    (ours, decided), (theirs, expected) = solve(kernel, case, device), solve(None, case)
    pairs = [(ours.codes, theirs.codes), (decided.kept.T, expected.kept.T)]
    for mine, other in zip(decided.parameters(), expected.parameters(), strict=True):
        pairs.append((mine.codes, other.codes))
        assert mine.grids.shape == other.grids.shape and mine.grids.dtype == other.grids.dtype
        torch.testing.assert_close(mine.grids.cpu().float().mean(), other.grids.float().mean(), rtol=0.02, atol=0.02)
    alike = torch.stack([(mine.cpu() == other).all(1) for mine, other in pairs]).all(0)
    assert alike.float().mean() > 0.6
    torch.testing.assert_close(ours.decoded.cpu()[alike], theirs.decoded[alike], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(ours.loss.sum().cpu(), theirs.loss.sum(), rtol=0.03, atol=0)


def test_the_reference_is_the_walk_in_parts():
    for case in CASES:
        compare(reference, case)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled cases run here")
def test_two_levels_in_the_interpreter():
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_sweep_two_level import CASES, compare\n"
        "from featherweight.kernels.triton.sweep_two_level import sweep_two_level\n"
        "[compare(sweep_two_level, case) for case in CASES]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_two_levels_compiled(case):
    from featherweight.kernels.triton.sweep_two_level import sweep_two_level

    compare(sweep_two_level, case, "cuda")
