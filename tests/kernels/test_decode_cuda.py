"""What a product of one token takes along in a decode step: the CUDA source, run on a CPU."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of

from featherweight.kernels.cuda.around import Around, Scaled
from featherweight.kernels.cuda.multiply import Shape, blocks_of, multiply


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
