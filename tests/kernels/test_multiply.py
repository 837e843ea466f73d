"""The integer product's CUDA source, run on a CPU, against float64; its layout; that it compiles for Hopper."""

from dataclasses import replace

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.kernels import registry
from featherweight.kernels.cuda import compiler, prepared
from featherweight.kernels.cuda.choices import choose_shape
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import CELLS, decode_codes, decode_groups, encode_codes, encode_groups
from featherweight.kernels.cuda.multiply import Shape, dequantize, memory_of, multiply
from featherweight.packed.integer import Integer
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import OP


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
        (4, torch.float16, 96, 640, 13, 64, True, torch.bfloat16, Shape(256, 2, 1, 1, blocks=1, held=2)),
        (3, torch.bfloat16, 40, 1536, 3, 0, False, torch.float32, Shape(256, 1, 2, 1, splits=2)),
        (3, torch.float16, 16, 512, 2, 32, True, torch.float16, Shape(512, 1, 1, 1)),
        (2, torch.bfloat16, 80, 1152, 9, 128, True, torch.float16, Shape(256, 1, 1, 1, blocks=2, held=2, arranged=True)),
        (2, torch.float16, 32, 2048, 16, 256, False, torch.float16, Shape(512, 2, 1, 1, splits=2)),
        (8, torch.bfloat16, 24, 768, 8, 128, True, torch.float16, Shape(256, 1, 2, 2, arranged=True)),
        (8, torch.float16, 16, 512, 5, 128, True, torch.float32, Shape(256, 1, 1, 2)),
    ],
)
def test_product_is_that_of_the_decoded_weight(
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
    constants |= {"TILES": 1, "COLUMNS": 2, "SPLITS": 2, "HELD": 2, "THREADS": 256, "RESIDENT": 2}
    first = compiler.build("multiply.cu", constants, "sm_90")
    assert first[:4] == b"\x7fELF"
    kept = list(tmp_path.rglob("*.cubin"))
    assert [path.read_bytes() for path in kept] == [first]


def stored_weight(rows, inputs, bits, zeros, group=128):
    """An integer weight as it is stored."""
    generator = torch.Generator().manual_seed(3)
    groups = -(-inputs // group) if group else 1
    codes = torch.randint(0, 2**bits, (rows, inputs), generator=generator, dtype=torch.uint8)
    points = torch.randint(0, 2**bits, (rows, groups), generator=generator) if zeros else None
    scales = (torch.rand(rows, groups, generator=generator) + 0.5).to(torch.float16)
    return Integer.from_codes(codes, scales, points, bits, group)


@pytest.mark.parametrize(("bits", "zeros", "group"), [(4, True, 128), (3, False, 64), (2, True, None), (8, True, 32)])
def test_what_is_stored_comes_back_bit_for_bit(bits, zeros, group):
    weight = stored_weight(40, 424, bits, zeros, group)
    stored = DeviceCodes.from_stored(weight.description(), weight.tensors()).stored()
    assert stored.keys() == weight.tensors().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in weight.tensors().items())


@needs_compiler
@pytest.mark.parametrize(
    ("bits", "zeros", "dtype", "blocks"),
    [(4, True, torch.bfloat16, None), (3, False, torch.float16, 1), (8, True, torch.float16, 2)],
)
def test_values_are_those_of_the_plain_twin(emulation, bits, zeros, dtype, blocks):  # noqa: F811
    weight = stored_weight(72, 296, bits, zeros)
    made = torch.full((40, 296), float("nan"), dtype=dtype)
    dequantize(DeviceCodes.from_stored(weight.description(), weight.tensors()), made, 32, blocks)
    assert torch.equal(made, weight.dequantize(dtype)[32:72])


@needs_compiler
def test_a_linear_runs_from_the_layout_and_gives_back_what_it_stored(emulation, monkeypatch):  # noqa: F811
    kernels = (replace(registry.OPS[OP][0], supports=lambda signature, device: (True, "")), *registry.OPS[OP][1:])
    monkeypatch.setitem(registry.OPS, OP, kernels)
    monkeypatch.setattr(prepared, "SLAB_BYTES", 1 << 14)
    weight, bias = stored_weight(48, 256, 4, True), torch.randn(48)
    module = PackedLinear(weight, bias, torch.bfloat16)
    plain = torch.nn.functional.linear
    for tokens in (1, 20, 70):
        x = torch.randn(2, tokens // 2, 256).bfloat16() if tokens > 1 else torch.randn(256).bfloat16()
        y, expected = module(x), plain(x.double(), weight.dequantize().double(), bias.double())
        assert y.shape == expected.shape and (y.double() - expected).norm() <= 6e-3 * expected.norm()
    assert not set(dict(module.named_buffers())) & set(weight.tensors())  # the layout is there instead, not beside
    assert module.state_dict().keys() == {"bias", *weight.tensors()}
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in weight.tensors().items())
    assert torch.equal(module.packed.dequantize(), weight.dequantize())
    compiled, x = torch.compile(module, backend="aot_eager", fullgraph=True), torch.randn(3, 256).bfloat16()
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))
    x = torch.randn(3, 256, requires_grad=True)
    module(x.bfloat16()).sum().backward()  # gradients go through the composition
    assert x.grad is not None and set(dict(module.named_buffers())) == set(weight.tensors())


@pytest.mark.parametrize("inputs", [256, 768, 3072, 4096, 11008, 14336, 28672, 65536])
@pytest.mark.parametrize("tokens", [1, 4, 5, 8, 9, 16])
def test_every_cut_fits_a_multiprocessor(inputs, tokens):
    for bits in CELLS:
        weight = DeviceCodes(8192, inputs, bits, 32, torch.empty(512, inputs * bits // 2, device="meta"), None, None)
        shape = choose_shape(weight, tokens, 132)
        warps = shape.row_warps * shape.input_warps
        assert warps <= 16 and warps * shape.resident <= 16 and shape.splits * shape.blocks <= 132 * shape.resident
        assert inputs % shape.unit == 0 and (shape.row_warps & (shape.row_warps - 1)) == 0
        assert shape.resident * (memory_of(weight, shape, tokens)[2] + 1024) <= 228 << 10


def test_explain_says_why_not():
    reasons = [
        (Integer.describe((64, 256), 5, 128, True, torch.float16), "not 5"),
        (Integer.describe((64, 256), 4, 16, True, torch.float16), "not 16"),
        (Integer.describe((64, 250), 4, 50, True, torch.float16), "not 250"),
        (Integer.describe((64, 256), 4, 128, True, torch.float16, group_index=True), "group_index"),
        ({"kind": "lattice"}, "not for lattice"),
    ]
    for description, reason in reasons:
        name, runs, why = registry.explain(OP, description, "cuda")[0]
        assert (name, runs) == ("cuda", False) and reason in why
