"""The CUDA sources of a decode step, run on a CPU: what a product takes along, and attention by clusters of blocks."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of

from featherweight.kernels.cuda import attend as clustered
from featherweight.kernels.cuda import compiler
from featherweight.kernels.cuda.around import Around, Scaled
from featherweight.kernels.cuda.multiply import Shape, blocks_of, multiply
from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference import decode_attention


@needs_compiler
@pytest.mark.parametrize("shape", [Shape(256, 1, 1, 2), Shape(256, 1, 2, 1, splits=2, blocks=2), Shape(256, 2, 1, 2, blocks=1)])
def test_norms_and_sums_taken_along(emulation, shape):  # noqa: F811
    weight, dense = weight_of(80, 1152, 4, 128, True, torch.float16)
    generator = torch.Generator().manual_seed(0)
    row, gain = torch.randn(1, 1152, generator=generator).bfloat16(), torch.rand(1152, generator=generator)
    before = Scaled((row.float() * gain).bfloat16(), torch.stack([part.float().square().sum() for part in row[0].split(100)]), 1e-5)
    residual, following = torch.randn(1, 80, generator=generator).bfloat16(), torch.rand(80, generator=generator)
    bias = torch.randn(80, generator=generator).bfloat16()
    after = Scaled(torch.full((1, 80), torch.nan).bfloat16(), torch.full((blocks_of(80, shape),), torch.nan), 1e-5)
    normed = row.double() * gain * (row.double().square().mean() + 1e-5).rsqrt()
    expected = residual.double() + normed @ dense.T + bias.double()
    multiply(before.x, weight, bias, residual, shape, around=Around(before, residual, following, after))
    assert (residual.double() - expected).norm() < 5e-3 * expected.norm()
    assert torch.equal(after.x, (residual.float() * following).bfloat16())
    torch.testing.assert_close(after.squares.sum(), residual.float().square().sum())


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "keys", "group", "dim", "length", "position", "normed", "dtype"),
    [
        (1, 2, 3, 32, 40, 0, False, torch.bfloat16),
        (2, 1, 2, 64, 300, 130, True, torch.float16),
        (1, 1, 1, 128, 80, 79, True, torch.bfloat16),
        (1, 1, 2, 128, 600, 520, False, torch.float16),
    ],
)
def test_attention_by_clusters(emulation, batch, keys, group, dim, length, position, normed, dtype):  # noqa: F811
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    heads = Heads(keys, group, dim, dim**-0.5, *(drawn(dim) if normed else None for _ in range(2)), 1e-6)
    cosine, sine = drawn(length, dim).to(dtype), drawn(length, dim).to(dtype)
    cache = [drawn(batch, keys, length, dim).to(dtype) for _ in range(2)]
    ours, theirs = [each.clone() for each in cache], [each.clone() for each in cache]
    for here in (max(0, position - 1), position):  # the second finds what the first appended
        qkv, at = drawn(batch, (group + 2) * keys * dim).to(dtype), torch.tensor([here], dtype=torch.int32)
        empty = torch.full((batch, keys * group * dim), torch.nan).to(dtype)
        found = clustered.attend(qkv, cosine, sine, *ours, at, heads, length, empty).float()
        expected = decode_attention.attend(qkv, cosine, sine, *theirs, at, heads, None, torch.empty_like(empty)).float()
        assert (found - expected).norm() < 1e-3 * expected.norm()
        for one, other in zip(ours, theirs, strict=True):
            assert (one.float() - other.float()).norm() < 1e-3 * other.float().norm()


def test_attention_compiles_for_hopper(tmp_path, monkeypatch):
    if compiler.missing():
        pytest.skip(compiler.missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"ACTIVATION": 0, "DIM": 128, "KEYS": 8, "GROUP": 3, "NORMED": 0, "THREADS": 128}
    assert compiler.build("attend.cu", constants, "sm_90")[:4] == b"\x7fELF"
