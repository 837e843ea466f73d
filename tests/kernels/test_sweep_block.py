"""The Triton block kernel against the reference: in Triton's interpreter everywhere, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import E2M1, E4M3
from featherweight.kernels.keeping import Keeping
from featherweight.kernels.reference.sweep_block import sweep_block as reference
from featherweight.kernels.registry import OPS, choose, explain

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def arguments(columns, rows, with_mask, device="cpu", seed=0):
    """Arguments of the op, freshly made: several groups, unit upper triangular feedback."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(columns, rows, generator=generator)
    original = target + 0.1 * torch.randn(columns, rows, generator=generator)
    feedback = torch.randn(columns, columns, generator=generator).mul_(0.1).triu(1) + torch.eye(columns)
    importance = torch.rand(columns, generator=generator)
    scale = torch.rand(3, rows, generator=generator) * 0.2 + 0.1
    zero = torch.randint(0, 16, (3, rows), generator=generator).float()
    group = torch.randint(0, 3, (columns,), generator=generator, dtype=torch.int32)
    dropped = torch.rand(columns, rows, generator=generator) < 0.3 if with_mask else None
    codes = torch.zeros(columns, rows, dtype=torch.uint8)
    made = [target, original, feedback, importance, scale, zero, group, dropped, 15, codes]
    made += [torch.zeros(columns, rows), torch.full((rows,), 2.0)]
    return [each.to(device) if isinstance(each, torch.Tensor) else each for each in made]


def with_keeping(made, narrow):
    """The same with real zeros, and where a threshold keeps some weights."""
    columns, rows = made[0].shape
    made[5] = made[5] + 0.3
    kept = torch.zeros(columns, rows, dtype=torch.bool, device=made[0].device)
    return [*made, "real", Keeping(0.003, narrow, kept, torch.zeros(columns, rows, device=kept.device, dtype=torch.float16))]


def compare(kernel, columns, rows, with_mask, device="cpu", narrow=None, rounding="integer"):
    """Run both and compare what they write."""
    ours, theirs = arguments(columns, rows, with_mask, device), arguments(columns, rows, with_mask)
    if narrow is not None:
        ours, theirs = with_keeping(ours, narrow), with_keeping(theirs, narrow)
    if rounding != "integer":
        ours, theirs = [*ours, rounding], [*theirs, rounding]
    kernel(*ours)
    reference(*theirs)
    if narrow is not None:
        assert 0.01 < theirs[-1].kept.float().mean() < 0.5
        alike = (ours[-1].kept.cpu() == theirs[-1].kept) & (ours[9].cpu() == theirs[9])
        assert alike.float().mean() > 0.99
        close = (ours[-1].residual.cpu().float() - theirs[-1].residual.float()).abs() <= 0.13 * theirs[-1].residual.abs() + 1e-3
        assert close[alike].float().mean() > 0.995
    same = ours[9].cpu() == theirs[9]
    assert same.float().mean() > 0.995
    rows_alike = same.all(0)
    assert rows_alike.float().mean() > 0.9
    if rounding != "integer":  # a value next to a tie may go either way, and take its row along
        close = (ours[0].cpu() - theirs[0]).abs() < 1e-4
        assert close.float().mean() > 0.99 and (ours[0].cpu() - theirs[0]).abs().max() < 0.02
        rows_alike = close.all(0)
    for position in (0, 10):
        torch.testing.assert_close(ours[position].cpu()[:, rows_alike], theirs[position][:, rows_alike], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[11].cpu()[rows_alike], theirs[11][rows_alike], atol=1e-3, rtol=1e-3)
    if with_mask:
        assert ours[0].cpu()[theirs[7]].abs().max() == 0


CASES = [(1, 5, False), (32, 32, False), (70, 40, True)]
EXACT = [(40, 20, True, "cpu", None, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
NARROW = [(40, 24, True, "cpu", None, E4M3), (20, 33, False, "cpu", None, E2M1)]
KEEPING = [(16, 40, False, "cpu", False), (40, 33, False, "cpu", True)]


@needs_triton
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the compiled cases run here; Triton 3.6 interprets only with numpy < 2.4"
)
def test_in_the_interpreter():
    """Triton reads its switch when it is imported, hence the process of its own."""
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_sweep_block import CASES, EXACT, KEEPING, NARROW, compare\n"
        "from featherweight.kernels.triton.sweep_block import sweep_block\n"
        "[compare(sweep_block, *case) for case in CASES + KEEPING + EXACT + NARROW]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("columns", "rows", "with_mask"), CASES)
def test_compiled(columns, rows, with_mask):
    from featherweight.kernels.triton.sweep_block import sweep_block

    compare(sweep_block, columns, rows, with_mask, "cuda")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", KEEPING + EXACT + NARROW)
def test_compiled_with_keeping(case):
    from featherweight.kernels.triton.sweep_block import sweep_block

    compare(sweep_block, *case[:3], "cuda", *case[4:])


@pytest.mark.parametrize("narrow", [False, True])
def test_what_the_reference_keeps_is_what_the_file_adds_up(narrow):
    made = with_keeping(arguments(40, 9, False), narrow)
    before = made[0].clone()
    reference(*made)
    keeping, group = made[-1], made[6].long()
    s, z = made[4][group], made[5][group]
    decoded = (made[9].float() - z) * s + torch.where(keeping.kept, keeping.residual.float(), 0.0)
    torch.testing.assert_close(decoded, made[0], atol=0, rtol=0)
    assert keeping.kept.any() and not keeping.kept.all()
    assert torch.equal(made[9][keeping.kept].float(), z.round().clamp(0, 15)[keeping.kept])
    first = (before[0] - keeping.residual[0].float() - (z[0].round().clamp(0, 15) - z[0]) * s[0]).abs()
    assert (first <= (0.13 if narrow else 1e-3) * before[0].abs() + 2e-2).all()
    if narrow:
        assert torch.equal(keeping.residual.to(torch.float8_e5m2).to(torch.float16), keeping.residual)


@pytest.mark.parametrize("with_mask", [False, True])
def test_reference_against_single_steps(with_mask):
    """The definition, in float64 and without blocks."""
    made = arguments(50, 7, with_mask)
    target, original, feedback, importance, scale, zero, group, dropped = made[:8]
    w, t_all, errors = original.double(), target.clone().double(), torch.zeros(50, 7, dtype=torch.float64)
    expected, loss = torch.zeros(50, 7), torch.full((7,), 2.0, dtype=torch.float64)
    for j in range(50):
        t = t_all[j] + feedback[:j, j].double() @ errors[:j]
        s, z = scale[group[j]].double(), zero[group[j]].double()
        code = (torch.round(t / s) + z).clamp(0, 15)
        code = code if dropped is None else torch.where(dropped[j], z, code)
        expected[j] = code
        errors[j] = w[j] - (code - z) * s
        loss += importance[j] * (t - (code - z) * s) ** 2
    reference(*made)
    assert torch.equal(made[9].float(), expected)
    torch.testing.assert_close(made[10].double(), errors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[11].double(), loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("element", [E4M3, E2M1])
def test_narrow_formats_against_single_steps(element):
    """The definition, with the nearest of all numbers of the format, and no blocks."""
    made = arguments(50, 7, True)
    target, original, feedback, _, scale, zero, group, dropped = made[:8]
    zero.zero_()
    numbers = element.decode(torch.arange(2**element.bits)).double().unique()
    errors, expected = torch.zeros(50, 7, dtype=torch.float64), torch.zeros(50, 7, dtype=torch.float64)
    for j in range(50):
        t, s = target[j].double() + feedback[:j, j].double() @ errors[:j], scale[group[j]].double()
        nearest = numbers[((t / s)[:, None] - numbers).abs().argmin(1)]
        expected[j] = torch.where(dropped[j], 0.0, nearest * s)
        errors[j] = original[j].double() - expected[j]
    reference(*made, element)
    alike = (made[0].double() - expected).abs().amax(0) < 1e-4  # a value next to a tie takes its row along
    assert alike.sum() >= 6 and not made[0][dropped].any()
    assert torch.equal(element.decode(made[9]) * scale[group.long()], made[0])


def test_registry_offers_the_reference_last_and_explains():
    for op, kernels in OPS.items():
        assert kernels[-1].name == "reference"
        assert explain(op, {"columns": 128}, "cpu")[-1][1] is True
        assert callable(kernels[-1].load())
    assert choose("sweep_block", {"columns": 128}, "cpu") is reference
    (name, runs, reason), _ = explain("sweep_block", {"columns": 500}, "cuda")
    assert name == "triton" and not runs and reason
    with pytest.raises(FeatherweightError, match="did you mean sweep_block"):
        choose("sweep_blok", {}, "cpu")
