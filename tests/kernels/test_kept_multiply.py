"""The integer product that keeps its activations in registers: its CUDA source, run on a CPU, against float64; that it compiles."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of

from featherweight.kernels.cuda import compiler, prepared
from featherweight.kernels.cuda.choices import choose_kept
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.kept import UNIT, KeptShape, multiply_kept, shared_bytes
from featherweight.kernels.cuda.layout import CELLS


@needs_compiler
@pytest.mark.parametrize(
    ("bits", "dtype", "rows", "inputs", "tokens", "group", "zeros", "scale", "shape"),
    [
        (4, torch.bfloat16, 80, 1024, 16, 128, False, torch.bfloat16, KeptShape(1, 4, 1, 2, 1)),
        (4, torch.bfloat16, 200, 1024, 16, 128, False, torch.float32, KeptShape(2, 2, 2, 3, 1, 2)),
        (4, torch.bfloat16, 72, 1024, 13, 128, False, torch.float32, KeptShape(1, 4, 1, 4, 1, 1)),
        (3, torch.bfloat16, 40, 968, 7, 128, True, torch.float16, KeptShape(2, 2, 1, 4, 1, 2)),
        (4, torch.float16, 31, 512, 6, 64, True, torch.float16, KeptShape(1, 2, 2, 2, 1)),
        (3, torch.float16, 96, 1000, 7, 64, True, torch.float32, KeptShape(2, 2, 1, 2, 1)),
        (2, torch.bfloat16, 72, 640, 9, 32, True, torch.float16, KeptShape(1, 4, 2, 2, 1)),
        (8, torch.bfloat16, 96, 768, 13, 256, True, torch.float16, KeptShape(4, 2, 1, 2, 1)),
        (3, torch.bfloat16, 96, 512, 1, 0, False, torch.float16, KeptShape(2, 1, 2, 2, 1)),
    ],
)
def test_product_from_kept_activations_is_that_of_the_decoded_weight(
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
    multiply_kept(x, weight, bias, y, shape)
    expected = x.double() @ dense.T + bias.double()
    error = (y.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() <= (4e-3 if dtype == torch.bfloat16 else 6e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kept_activations_need_no_memory_beside_registers(bits, tmp_path, monkeypatch):
    if compiler.missing():
        pytest.skip(compiler.missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"BITS": bits, "ACTIVATION": 0, "SCALE": 0, "ZEROS": 1, "GROUP": 64, "WIDE": 1, "UNIT": 256, "TILES": 1}
    constants |= {
        "COLUMNS": 2,
        "SPLITS": 2,
        "INPUT_WARPS": 8,
        "ROW_WARPS": 2,
        "STAGES": 4,
        "RESIDENT": 1,
        "AHEAD": 2,
    }
    assert compiler.build("kept.cu", constants, "sm_90")[:4] == b"\x7fELF"


@pytest.mark.parametrize("inputs", [256, 768, 3072, 4096, 11008, 14336, 28672, 32768])
@pytest.mark.parametrize("tokens", [2, 8, 16])
def test_every_cut_of_kept_activations_fits_a_multiprocessor(inputs, tokens):
    for bits in CELLS:
        for rows in (256, 4096, 28672):
            weight = DeviceCodes(
                rows, inputs, bits, 32, torch.empty(rows // 16, 1, device="meta"), torch.empty(0), torch.empty(0)
            )
            shape = choose_kept(weight, tokens, 132)
            assert shape.splits * shape.input_warps * UNIT >= inputs and shape.input_warps % 2 == 0
            assert shape.row_warps * shape.input_warps * shape.resident <= 16 and shape.ahead <= shape.stages
            assert shape.resident * (shared_bytes(weight, shape, tokens) + 1024) <= 228 << 10


@needs_compiler
def test_some_tokens_take_this_kernel(emulation, monkeypatch):  # noqa: F811
    monkeypatch.setattr(prepared, "runs_on", lambda device: True)
    monkeypatch.setattr(prepared, "multiply", None)  # the kernel for one token is not asked
    weight, dense = weight_of(64, 512, 4, 128, False, torch.bfloat16)
    x = torch.randn(3, 4, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    y, expected = prepared.PreparedInteger(weight)(x), x.double() @ dense.T
    assert y.shape == expected.shape and (y.double() - expected).norm() <= 3e-3 * expected.norm()
