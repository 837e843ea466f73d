"""Whole blocks of the walk in one kernel: the CUDA source, run on a CPU, against plain torch and against the walk without it."""

from dataclasses import replace

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.grids.uniform import UniformGrid
from featherweight.kernels import registry
from featherweight.kernels.cuda.walk import open_walk
from featherweight.kernels.reference.walk import open_walk as reference
from featherweight.kernels.walking import Walking
from featherweight.masks.patterns import Pattern
from featherweight.methods.base import Problem
from featherweight.methods.dropping import Hold, Select
from featherweight.methods.gptq import GPTQ
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.packed.dense import Dense
from featherweight.solvers.fitting import fitting_of
from featherweight.statistics.inputs import InputStatistics

GRIDS = [
    UniformGrid(4),
    UniformGrid(3, fit_by="weighted", scale_dtype=torch.bfloat16),
    UniformGrid(2, symmetric=True, fit_by="weighted"),
    UniformGrid(3, fit_by="mse"),
]


def first_of(size, grid):
    """Where the block starts."""
    return size if grid else 32


def walking_of(columns, rows, size, grid, dtype=torch.float32, device="cpu", scattered=False, seed=0):
    """A walk whose last block is to come, freshly made; one row of zeros, one dead input, weights that are alike."""
    generator = torch.Generator().manual_seed(seed)
    inputs = columns + (first := first_of(size, grid))
    original = (torch.randn(inputs, rows, generator=generator) * 0.05).bfloat16().float()
    target = original + 0.004 * torch.randn(inputs, rows, generator=generator)
    original[:, 3], target[:, 3], target[first + 5], original[first + 5] = 0, 0, 0, 0
    alike = slice(first + 8, first + 28)
    target[alike] = original[alike] = torch.randint(-3, 4, (20, rows), generator=generator) / 64  # many scores are equal
    feedback = torch.randn(inputs, inputs, generator=generator).mul_(0.05).triu(1) + torch.eye(inputs)
    feedback[first + 5], feedback[:, first + 5], feedback[:, alike] = 0, 0, 0
    importance = torch.rand(inputs, generator=generator) + 0.1
    importance[alike], importance[first + 5] = 1, 0
    groups = -(-inputs // size)
    filled = (
        [torch.full((groups, rows), torch.nan) for _ in "sz"] if grid else [torch.ones(groups, rows), torch.zeros(groups, rows)]
    )
    codes, loss = torch.zeros(inputs, rows, dtype=torch.uint8), torch.ones(rows)
    tensors = [each.to(device) for each in (target, original, feedback, importance, *filled, codes, loss)]
    walking = Walking(*tensors, size, fitting_of(grid) if grid else None, dtype)
    return scattered_of(walking, generator) if scattered else walking


def scattered_of(walking, generator):
    """The same, every column in a group of its own choice, whose grids are known."""
    groups, rows = walking.scale.shape
    index = torch.randint(0, groups, (len(walking.target),), generator=generator, dtype=torch.int32)
    scale, zero = (
        torch.rand(groups, rows, generator=generator) * 0.01 + 0.01,
        torch.randint(0, 16, (groups, rows), generator=generator),
    )
    walking.scale.copy_(scale)
    walking.zero.copy_(zero)
    return replace(walking, group_index=index.to(walking.target.device))


def dropping_of(how, walking, linears, seed=0):
    """A decision's own words; None rounds all."""
    inputs, rows = walking.target.shape
    generator, device = torch.Generator().manual_seed(seed), walking.target.device
    if how is None:
        return None
    if how[0] in ("given", "held"):
        mask = (torch.rand(inputs, rows, generator=generator) < 0.4).to(device)
        return Hold(mask, None, True, walking.feedback if how[0] == "held" else None).dropping()
    pattern = Pattern.parse(*how)
    return Select(pattern, pattern.of or 128, linears, inputs, torch.device(device), True, walking.feedback).dropping()


def compare(kernel, columns, rows, size, grid, how, dtype=torch.float32, device="cpu", linears=None, scattered=False):
    """Rows that were rounded alike (a value next to a tie may go either way) are most, and alike in all."""
    made, first = [], first_of(size, grid)
    for run, place in ((kernel, device), (reference, "cpu")):
        walking = walking_of(columns, rows, size, grid, dtype, place, scattered)
        dropping = dropping_of(how, walking, linears or [rows])
        error = run(walking, dropping)(first, first + columns).float().cpu()
        written = [each.cpu() for each in (walking.target, walking.codes, walking.scale, walking.zero, walking.loss[None])]
        dropped = torch.zeros_like(written[0], dtype=torch.bool) if dropping is None else dropping.dropped.cpu()
        made.append((*written, dropped, error))
    (target, codes, scale, zero, _, dropped, error), other = made
    groups = slice(first // size, -(-(first + columns) // size))
    alike = (codes[first:] == other[1][first:]).all(0) & (dropped == other[5]).all(0)
    alike &= torch.isclose(scale[groups], other[2][groups], rtol=1e-4).all(0) & (zero[groups] == other[3][groups]).all(0)
    assert alike.float().mean() > 0.85
    for mine, theirs in zip(made[0], other, strict=True):
        if mine is scale or mine is zero:
            mine, theirs = mine[groups], theirs[groups]
        torch.testing.assert_close(mine[..., alike].float(), theirs[..., alike].float(), atol=2e-4, rtol=1e-3)
    assert dropped.sum() == other[5].sum()
    high, again, low = error.view(3, columns, rows)
    assert torch.equal(high, again)
    weight = walking_of(columns, rows, size, grid, dtype).original[first:]
    torch.testing.assert_close(high + low, weight - target[first:], atol=2e-6, rtol=2e-5)


CASES = [
    (128, 40, 128, GRIDS[0], None),
    (96, 33, 16, GRIDS[1], None),
    (64, 32, 32, GRIDS[2], ("held",)),
    (64, 33, 32, GRIDS[0], ("given",)),
    (64, 40, 64, GRIDS[1], ("2:4",)),
    (32, 32, 16, GRIDS[0], ("4:8",)),
    (128, 96, 64, GRIDS[0], ("layer", 0.5), torch.float32, [64, 32]),
    (128, 64, 128, None, ("layer", 0.3), torch.bfloat16, [32, 32]),
    (96, 32, 160, None, ("1:2",), torch.float16, None),
    (64, 33, 32, GRIDS[3], None),
    (96, 33, 32, GRIDS[0], ("given",), torch.float32, None, True),
]


def run_case(kernel, device, columns, rows, size, grid, how, dtype=torch.float32, linears=None, scattered=False):
    compare(kernel, columns, rows, size, grid, how, dtype, device, linears, scattered)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}x{case[1]} g{case[2]} {case[4]}")
def test_a_block_is_as_the_reference_has_it(emulation, case):  # noqa: F811
    run_case(open_walk, "cpu", *case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}x{case[1]} g{case[2]} {case[4]}")
def test_a_block_on_the_card(case):
    run_case(open_walk, "cuda", *case)


METHODS = {
    "gptq in another order": GPTQ(group_size=60, order="static"),
    "2:4": SparseGPT(pattern="2:4"),
    "joint": SparseGPT(bits=4, group_size=32, fit="minmax"),
    "whole rows": SparseGPT(bits=4, group_size=None),
    "whole rows, 2:4": SparseGPT(pattern="2:4", bits=3, group_size=None),
    "spqr": SpQR(max_outlier_share=0.5),
    "spqr, searched": SpQR(fit="weighted", second_group_size=64, outlier_bits=8, max_outlier_share=0.5),
    "spqr, no outliers": SpQR(fit="weighted", group_size=32, outlier_threshold=None, order="identity"),
}


def compress(method, device):
    """Three blocks, the last one short; two linears of one input, of which each loses its share."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(900, 300, generator=generator) @ torch.randn(300, 300, generator=generator)).to(device)
    sizes = (("a", 64), ("b", 32))
    weights = {name: torch.randn(rows, 300, generator=generator).bfloat16().float().to(device) for name, rows in sizes}
    current = {name: Dense(weight.bfloat16()) for name, weight in weights.items()}
    statistics = InputStatistics.from_inputs(x, frozenset({"hessian"}))
    return method.compress(Problem(weights, current, statistics, torch.bfloat16))


def assert_alike(fused, without, spreads):
    """A tie moves what follows in its row; where it `spreads`, also what shares a second grid with that."""
    for name, weight in without.items():
        ours, theirs = fused[name].weight.dequantize().cpu(), weight.weight.dequantize()
        kept = [each.weight.support for each in (fused[name], weight)]
        assert kept[0] is None or kept[0].sum() == kept[1].sum()
        assert ((ours - theirs).abs() > 1e-3 * theirs.abs()).float().mean() < (0.5 if spreads else 0.1)
        assert fused[name].facts["relative_error"] == pytest.approx(weight.facts["relative_error"], rel=0.01)


@needs_compiler
@pytest.mark.parametrize("name", METHODS)
def test_a_method_with_the_kernel_is_the_method_without(emulation, monkeypatch, name):  # noqa: F811
    without = compress(METHODS[name], "cpu")
    for kernel in registry.OPS["walk_block"]:
        runs = replace(kernel, name=f"{kernel.name}, asked for", supports=lambda signature, device: (True, ""))
        monkeypatch.setitem(registry.OPS, "walk_block", (runs,))
        assert_alike(compress(METHODS[name], "cpu"), without, isinstance(METHODS[name], SpQR))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_the_card(name):
    assert_alike(compress(METHODS[name], "cuda"), compress(METHODS[name], "cpu"), isinstance(METHODS[name], SpQR))
