"""The kernels that round eight columns at a time, against plain torch: in the interpreter, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.grids.e8 import E8Grid
from featherweight.kernels.reference.sweep_vectors import descend_vectors as descend_reference
from featherweight.kernels.reference.sweep_vectors import sweep_vectors as reference
from featherweight.solvers.fitting import vectors_of

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: Bits, columns, rows.
CASES = [(2, 24, 9), (3, 16, 33), (4, 16, 9)]


def problem(columns, rows, device, seed=0):
    """Weights `[columns, rows]`, a Hessian and its factor, scales; one row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    hessian = x.T @ x / len(x) / columns + 0.1 * torch.eye(columns)
    root = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1).contiguous()
    feedback = torch.cat(
        [torch.linalg.solve_triangular(root[p, p], root[:, p], upper=True, left=False) for p in parts_of(columns)], 1
    ).contiguous()
    weight = torch.randn(columns, rows, generator=generator) * (1 + torch.arange(rows) / rows)
    weight[:, 3] = 0
    made = [weight, hessian, root, feedback, 0.9 + torch.rand(rows, generator=generator)]
    return [each.to(device) for each in made]


def parts_of(columns):
    return [slice(start, start + 8) for start in range(0, columns, 8)]


def walk(kernel, bits, columns, rows, device):
    weight, _, root, feedback, scale = problem(columns, rows, device)
    target, codes = weight.clone(), torch.zeros(columns // 8, rows, dtype=torch.int32, device=device)
    error, loss = torch.full_like(weight, torch.nan), torch.ones(rows, device=device)
    kernel(target, weight, feedback, root, scale, vectors_of(E8Grid(bits), weight.device), codes, error, loss)
    return [each.cpu() for each in (codes, target, error, loss)]


def descent(kernel, bits, columns, rows, device):
    """From rounding each vector by itself."""
    weight, hessian, _, _, scale = problem(columns, rows, device, 1)
    rule = vectors_of(E8Grid(bits), weight.device)
    rounded = [rule.apply(weight[part].T, scale) for part in parts_of(columns)]
    codes, decoded = torch.stack([each[0] for each in rounded]), torch.cat([each[1].T for each in rounded]).contiguous()
    error, gain = weight - decoded, torch.ones(rows, device=device)
    inverses = torch.linalg.inv(torch.stack([hessian[part, part] for part in parts_of(columns)]))
    before = (error * (hessian @ error)).sum(0)
    kernel(hessian @ error, hessian, inverses, scale, rule, codes, decoded, error, gain)
    torch.testing.assert_close(error, weight - decoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(before - (error * (hessian @ error)).sum(0), gain - 1, atol=1e-3, rtol=1e-3)
    assert (gain > 1).float().mean() > 0.5
    return [each.cpu() for each in (codes, decoded, error, gain)]


def compare(kernels, bits, columns, rows, device="cpu"):
    """Rows with equal codes are nearly all (a value between two codewords may go either way), and equal in the rest."""
    for run, kernel, twin in ((walk, kernels[0], reference), (descent, kernels[1], descend_reference)):
        ours, theirs = run(kernel, bits, columns, rows, device), run(twin, bits, columns, rows, "cpu")
        alike = (ours[0] == theirs[0]).all(0)
        assert alike.float().mean() > 0.9
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine[..., alike], other[..., alike], atol=1e-3, rtol=1e-3)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled cases run here")
def test_vectors_in_the_interpreter():
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_sweep_vectors import CASES, compare\n"
        "from featherweight.kernels.triton.sweep_vectors import descend_vectors, sweep_vectors\n"
        "[compare((sweep_vectors, descend_vectors), *case) for case in CASES]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_vectors_compiled(case):
    from featherweight.kernels.triton.sweep_vectors import descend_vectors, sweep_vectors

    compare((sweep_vectors, descend_vectors), *case, "cuda")
