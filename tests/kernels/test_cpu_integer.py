"""Integer codes on a CPU by the C file, for every instruction set this machine has, against float64 and the reference's bits."""

from __future__ import annotations

import shutil

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.kernels.cpu import compiler, integer
from featherweight.kernels.registry import choose, explain
from featherweight.packed.integer import Integer

if compiler.missing("integer"):
    pytest.skip(compiler.missing("integer"), allow_module_level=True)

LEVELS = range(integer._level() + 1)
#: Rows, inputs, group: several blocks; blocks of 192, 64, 16; parts of a unit; a group that ends early; whole rows; none in 16s.
SHAPES = ((7, 768, 256), (5, 576, None), (9, 320, 64), (11, 208, 16), (3, 96, 48), (6, 576, 128), (4, 24, 8), (2, 130, 64))


def weight(rows: int, inputs: int, group: int | None, bits: int, symmetric: bool, dtype: torch.dtype) -> Integer:
    groups = -(-inputs // (group or inputs))
    codes = torch.randint(0, 2**bits, (rows, inputs), dtype=torch.uint8)
    zeros = None if symmetric else torch.randint(0, 2**bits, (rows, groups))
    return Integer.from_codes(codes, (torch.randn(rows, groups) / 100).to(dtype), zeros, bits, group)


@pytest.fixture(params=LEVELS, ids=[integer.LEVELS[level] for level in LEVELS])
def level(request, monkeypatch):
    monkeypatch.setattr(integer, "_level", lambda: request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_values_and_products(level, shape, bits):
    for symmetric, scales in ((True, torch.float16), (False, torch.bfloat16), (False, torch.float32)):
        packed = weight(*shape, bits, symmetric, scales)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            values = integer.integer_values(packed, dtype)
            assert torch.equal(values, packed.decoded().to(dtype)), "the same bits"
        for tokens in (1, 2, 7, 17):
            x = torch.randn(tokens, shape[1])
            x[:, 3] *= 100  # one large input in a block must not drown the others
            for dtype, bound in ((torch.float32, 5e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)):
                y = integer.integer_matmul(x.to(dtype), packed)
                left, right = x.to(dtype).double(), packed.decoded().double()
                size = (left.abs() @ right.abs().T).norm()  # sums may cancel
                assert y.dtype == dtype and (y.double() - left @ right.T).norm() < bound * size


def test_any_shape_of_input_and_threads_change_nothing(level):
    packed = weight(600, 256, 64, 4, False, torch.float16)
    x = torch.randn(2, 3, 512)[..., ::2]
    one = integer.integer_matmul(x, packed)
    assert one.shape == (2, 3, 600)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(integer.integer_matmul(x, packed), one)
        assert torch.equal(integer.integer_values(packed, torch.bfloat16), packed.decoded().bfloat16())
    finally:
        torch.set_num_threads(before)
    assert integer.integer_matmul(torch.empty(0, 256), packed).shape == (0, 600)


def test_what_is_not_finite_stays_so_and_zeros_give_zeros(level):
    packed = weight(4, 128, 64, 4, False, torch.float16)
    x = torch.zeros(4, 128)
    x[1, 5], x[2, 100], x[3, 0] = float("nan"), float("inf"), 1e-35
    y = integer.integer_matmul(x, packed)
    assert torch.equal(y[0], torch.zeros(4)) and y[1:3].isnan().all() and y[3].isfinite().all()


def test_a_module_multiplies_by_it_and_gradients_flow_past_it():
    packed = weight(8, 64, 32, 4, False, torch.float16)
    x = torch.randn(3, 64, requires_grad=True)
    torch.testing.assert_close(packed.matmul(x.detach()), packed.matmul(x).detach())
    packed.matmul(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.decoded().sum(0).expand(3, -1))


def test_without_a_compiler_the_reference_runs_and_says_why(monkeypatch):
    packed = weight(4, 64, 32, 4, False, torch.float16)
    assert choose("integer_matmul", packed.description(), "cpu") is integer.integer_matmul
    name, runs, reason = explain("integer_matmul", packed.description(), "cpu")[0]
    assert (name, runs) == ("cpu", True) and integer.level() in reason
    indexed = {**packed.description(), "group_index": True}
    assert (
        not explain("integer_matmul", indexed, "cpu")[0][1]
        and not explain("integer_matmul", packed.description(), "cuda")[0][1]
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler, "missing", compiler.missing.__wrapped__)
    compiler.library.cache_clear()
    assert explain("integer_matmul", packed.description(), "cpu")[0][1:] == (False, "no C compiler was found")
    torch.testing.assert_close(packed.matmul(torch.eye(64)), packed.decoded().T)


def test_what_the_compiler_says_is_passed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-include", "nonsense.h"))
    monkeypatch.setattr(compiler, "kernel_folder", lambda: tmp_path)
    with pytest.raises(FeatherweightError, match=r"does not compile[\s\S]*nonsense"):
        compiler.library.__wrapped__("integer")
    assert not list(tmp_path.iterdir())
