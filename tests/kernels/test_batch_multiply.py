"""The integer product for many tokens: its CUDA source, run on a CPU, against float64."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of

from featherweight.kernels.cuda import prepared
from featherweight.kernels.cuda.batch import BatchShape, multiply_batch, shared_bytes
from featherweight.kernels.cuda.choices import choose_batch
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import CELLS


@needs_compiler
@pytest.mark.parametrize(
    ("bits", "dtype", "rows", "inputs", "tokens", "group", "zeros", "scale", "shape"),
    [
        (4, torch.bfloat16, 72, 1280, 13, 128, False, torch.bfloat16, BatchShape(16, 1, 3, 1, True)),
        (4, torch.float16, 40, 640, 40, 64, True, torch.float16, BatchShape(32, 1, 2, 2)),
        (3, torch.bfloat16, 64, 1536, 8, 0, True, torch.float32, BatchShape(8, 1, 2, 2, True)),
        (2, torch.float16, 136, 1152, 20, 384, False, torch.float16, BatchShape(32, 2, 2, 2)),
        (8, torch.bfloat16, 24, 512, 9, 32, True, torch.float16, BatchShape(16, 1, 2, 1)),
    ],
)
def test_product_of_many_tokens_is_that_of_the_decoded_weight(
    emulation,  # noqa: F811
    bits,
    dtype,
    rows,
    inputs,
    tokens,
    group,
    zeros,
    scale,
    shape,
):
    weight, dense = weight_of(rows, inputs, bits, group, zeros, scale)
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(tokens, inputs, generator=generator) * torch.logspace(-3, 1, tokens)[:, None]).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype)
    y = torch.full((tokens, rows), float("nan"), dtype=dtype)
    multiply_batch(x, weight, bias, y, shape)
    expected = x.double() @ dense.T + bias.double()
    error = (y.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() <= (4e-3 if dtype == torch.bfloat16 else 6e-4)


@pytest.mark.parametrize("rows", [576, 4096, 28672])
@pytest.mark.parametrize("tokens", [17, 40, 64, 65, 256])
def test_every_cut_for_many_tokens_fits_a_multiprocessor(rows, tokens):
    for bits in CELLS:
        for zeros in (None, torch.empty(0, dtype=torch.uint8)):
            codes, scales = torch.empty(rows // 16, 4096 * bits // 2, device="meta"), torch.empty(0)
            weight = DeviceCodes(rows, 4096, bits, 32, codes, scales, zeros)
            shape = choose_batch(weight, tokens, 132)
            assert shape.warp_groups in (1, 2, 4) and shape.stages >= 1 and shape.tokens in (32, 64)
            assert shared_bytes(weight, shape) + 1024 <= 228 << 10


@needs_compiler
def test_dozens_of_tokens_take_this_kernel(emulation, monkeypatch):  # noqa: F811
    monkeypatch.setattr(prepared, "runs_on", lambda device: True)
    monkeypatch.setattr(prepared, "multiply", None)  # the kernel for few tokens, and
    monkeypatch.setattr(prepared, "multiply_dense", None)  # that for many, are not asked
    weight, dense = weight_of(64, 512, 4, 128, False, torch.bfloat16)
    x = torch.randn(2, 10, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    y, expected = prepared.PreparedInteger(weight)(x), x.double() @ dense.T
    assert y.shape == expected.shape and (y.double() - expected).norm() <= 3e-3 * expected.norm()
