"""The integer product's CUDA source, run on a CPU, against float64; its layout; that it compiles for Hopper."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.kernels.cuda import compiler
from featherweight.kernels.cuda.layout import CELLS, decode_codes, decode_groups, encode_codes, encode_groups
from featherweight.kernels.cuda.multiply import DeviceCodes, Shape, multiply


def weight_of(rows, inputs, bits, group, zeros, scale_dtype, seed=0):
    """A device weight and its values, float64."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // group) if group else 1
    codes = torch.randint(0, 2**bits, (rows, inputs), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(rows, groups, generator=generator) + 0.5).to(scale_dtype)
    points = torch.randint(0, 2**bits, (rows, groups), generator=generator, dtype=torch.uint8) if zeros else None
    zero = points.double() if zeros else torch.full((rows, groups), 2.0 ** (bits - 1), dtype=torch.float64)
    spread = [each.repeat_interleave(group or inputs, 1)[:, :inputs] for each in (scales.double(), zero)]
    return DeviceCodes.of(codes, scales, points, bits, group), (codes.double() - spread[1]) * spread[0]


@needs_compiler
@pytest.mark.parametrize(
    ("bits", "dtype", "rows", "inputs", "tokens", "group", "zeros", "scale", "shape"),
    [
        (4, torch.bfloat16, 40, 1024, 1, 128, False, torch.float16, Shape(512, 1, 1, 2)),
        (4, torch.float16, 96, 640, 13, 64, True, torch.bfloat16, Shape(256, 2, 1, 1, rounds=2)),
        (3, torch.bfloat16, 40, 1536, 3, 0, False, torch.float32, Shape(256, 1, 2, 1, splits=2)),
        (3, torch.float16, 16, 512, 2, 32, True, torch.float16, Shape(512, 1, 1, 1)),
        (2, torch.bfloat16, 80, 1152, 9, 128, True, torch.float16, Shape(256, 1, 1, 1, rounds=3)),
        (2, torch.float16, 32, 2048, 16, 256, False, torch.float16, Shape(512, 2, 1, 1, splits=2)),
        (8, torch.bfloat16, 24, 768, 8, 128, True, torch.float16, Shape(256, 1, 2, 2)),
        (8, torch.float16, 16, 512, 5, 128, True, torch.float32, Shape(256, 1, 1, 2)),
    ],
)
def test_product_is_that_of_the_decoded_weight(
    emulation, bits, dtype, rows, inputs, tokens, group, zeros, scale, shape  # noqa: F811
):
    weight, dense = weight_of(rows, inputs, bits, group, zeros, scale)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, inputs, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype)
    y = torch.full((tokens, rows), float("nan"), dtype=dtype)
    multiply(x, weight, bias, y, shape)
    expected = x.double() @ dense.T + bias.double()
    assert (y.double() - expected).norm() <= expected.norm() * (3e-3 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.parametrize("bits", CELLS)
def test_layout_is_a_permutation(bits):
    codes = torch.randint(0, 2**bits, (50, 300), dtype=torch.uint8)
    encoded = encode_codes(codes, bits)
    assert torch.equal(decode_codes(encoded, bits, 50, 300), codes)
    assert encoded.numel() * 32 == 64 * 512 * bits  # whole tiles and steps, and not a bit more


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_layout_of_scales_is_a_permutation(group):
    values = torch.randn(50, -(-1000 // group))
    assert torch.equal(decode_groups(encode_groups(values, group, 1000), 50, values.shape[1]), values)


@pytest.mark.parametrize("bits", CELLS)
def test_compiles_for_hopper(bits, tmp_path, monkeypatch):
    if compiler.missing():
        pytest.skip(compiler.missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"BITS": bits, "ACTIVATION": 0, "SCALE": 0, "ZEROS": 1, "GROUP": 64, "WIDE": 1, "UNIT": 256}
    constants |= {"TILES": 1, "COLUMNS": 2, "THREADS": 256, "RESIDENT": 2}
    first = compiler.build("multiply.cu", constants, "sm_90")
    assert first[:4] == b"\x7fELF"
    kept = list(tmp_path.rglob("*.cubin"))
    assert [path.read_bytes() for path in kept] == [first]
