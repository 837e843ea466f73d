"""The lattice's product and the Hadamard transforms: their CUDA source run on a CPU against float64, layouts, the linear."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.grids.e8_codebook import codebook, small_codebook
from featherweight.kernels import registry
from featherweight.kernels.cuda import compiler, driver, hadamard, lattice
from featherweight.kernels.cuda import lattice_layout as layout
from featherweight.models.transforms import Hadamard
from featherweight.packed import lattice_prepared
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.lattice_device import to_device, unsupported
from featherweight.packed.linear import PackedLinear
from featherweight.packed.low_rank import LowRank
from featherweight.packed.lower import OP
from featherweight.packed.rotated import Rotated
from featherweight.packed.signs import real_signs
from featherweight.packed.sum import Sum


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(size, inverted=False, seed=3):
    return Hadamard(1 - 2 * torch.randint(0, 2, (size,), generator=drawn(seed)).to(torch.int8), size, inverted)


def weight_of(rows, inputs, bits, rank=0, group=64, inverted=False, output=True):
    """A lattice of random codes between rotations, and with a rank a term of 4-bit factors."""
    vectors = (rows, -(-inputs // 8))
    stored = {
        "codes": torch.randint(-(2**15), 2**15, vectors, generator=drawn(1)).to(torch.int16),
        "scale": torch.tensor([0.02]),
    }
    if bits > 2:
        dtype = torch.int16 if bits == 4 else torch.uint8
        stored["residual"] = torch.randint(0, 256 if bits == 3 else 2**15, vectors, generator=drawn(2)).to(dtype)
    inner = Lattice.from_tensors(Lattice.describe((rows, inputs), bits), stored)
    if rank:
        factors = []
        for width in (rows, inputs):
            scales = (torch.rand(rank, -(-width // group) if group else 1, generator=drawn(width)) * 0.02).half()
            codes = torch.randint(0, 16, (rank, width), generator=drawn(width + 1), dtype=torch.uint8)
            factors.append(Integer.from_codes(codes, scales, None, 4, group))
        inner = Sum((inner, LowRank(*factors)))
    return Rotated.of(inner, rotation(inputs, inverted), rotation(rows, inverted, 4) if output else None)


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture
def small_device(emulation, monkeypatch):  # noqa: F811
    """Two multiprocessors, and clusters for rows of a thousand already."""
    monkeypatch.setattr(driver, "processors", lambda device: 2)
    monkeypatch.setattr(hadamard, "LONG_ROW", 1024)


@needs_compiler
@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "rank", "tokens", "dtype", "more"),
    [
        (64, 512, 2, 0, 1, torch.bfloat16, {"output": False}),
        (192, 512, 3, 16, 5, torch.float16, {"group": 16}),
        (128, 320, 4, 70, 9, torch.bfloat16, {"inverted": True}),
        (64, 1024, 2, 70, 2, torch.bfloat16, {"inverted": True, "group": None}),
    ],
)
def test_product_is_that_of_the_weight(small_device, rows, inputs, bits, rank, tokens, dtype, more):
    weight = weight_of(rows, inputs, bits, rank, **more)
    x = torch.randn(tokens, inputs, generator=drawn()).to(dtype)
    expected = weight.matmul(x.double())
    assert error(lattice.multiply(x, to_device(weight)), expected) < (2.5e-3 if dtype == torch.bfloat16 else 3e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "rank", "tokens", "near", "group"),
    [(384, 128, 3, 16, 1, 1, 64), (512, 128, 2, 130, 2, 6, None), (128, 64, 2, 16, 5, 4, 16)],
)
def test_blocks_share_the_term_and_begin_the_rotation(small_device, monkeypatch, rows, inputs, bits, rank, tokens, near, group):
    """Of eight multiprocessors: rows stand in another order, and come back in their own."""
    monkeypatch.setattr(driver, "processors", lambda device: 8)
    weight = weight_of(rows, inputs, bits, rank, group)
    prepared = lattice_prepared.PreparedLattice(weight)
    inner = prepared.weight.inner
    assert inner.blocks.near == near and (inner.ranks is None) == (group == 16)
    x = torch.randn(tokens, inputs, generator=drawn()).bfloat16()
    assert error(prepared(x), weight.matmul(x.double())) < 2.5e-3
    found, (plain, *_) = torch.empty(32, inputs, dtype=torch.float16), weight.inner.terms
    lattice.values(inner, found, 64)
    torch.testing.assert_close(found.float(), plain.dequantize()[64:96], rtol=2**-10, atol=1e-6)
    assert all(torch.equal(tensor, weight.tensors()[name]) for name, tensor in prepared.stored().items())


@needs_compiler
def test_sums_are_exact_in_any_order(small_device):
    device = to_device(weight_of(64, 512, 2))
    x = hadamard.rotate_for_product(torch.randn(1, 512, generator=drawn()).bfloat16(), device.input, None)
    whole = lattice.multiply_rotated(x, device.inner, torch.float32, lattice.Shape(2, 1, 16, 2))
    assert torch.equal(whole, lattice.multiply_rotated(x, device.inner, torch.float32, lattice.Shape(3, 1, 2, 1)))
    parts = lattice.multiply_rotated(x, device.inner, torch.float32, lattice.Shape(1, 2, 2, 1))
    torch.testing.assert_close(parts.sum(0), whole[0], rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("size", "dtype", "to", "inverted"),
    [
        (16, torch.float32, torch.float32, False),
        (1024, torch.bfloat16, torch.bfloat16, True),
        (1536, torch.float32, torch.float16, False),
        (1216, torch.float16, torch.float32, True),
    ],
)
def test_transform_is_that_of_the_map(small_device, size, dtype, to, inverted):
    weight = Rotated.of(Lattice.from_tensors(Lattice.describe((16, size), 2), _codes(16, size)), rotation(size, inverted))
    for rows in (2, 17):  # by clusters where rows are long, and by single blocks
        x = torch.randn(rows, size, generator=drawn()).to(dtype)
        found = hadamard.rotate(x, to_device(weight).input, to)
        assert found.dtype == to
        assert (
            error(found, weight.input.apply(x.double())) < {torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 3e-3}[to]
        )


@needs_compiler
@pytest.mark.parametrize(
    ("size", "dtype", "to", "inverted"),
    [
        (2048, torch.bfloat16, torch.bfloat16, True),
        (4096, torch.float16, torch.float16, False),
        (8192, torch.bfloat16, torch.float16, True),
        (1536, torch.bfloat16, torch.bfloat16, False),
        (2560, torch.float16, torch.bfloat16, True),
        (11008, torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_many_rows_are_those_of_the_map(emulation, monkeypatch, size, dtype, to, inverted):  # noqa: F811
    monkeypatch.setattr(hadamard, "FEW_ROWS", 0)
    monkeypatch.setattr(hadamard, "SHARED", 2000)  # one block, which goes from row to row
    launched = []
    monkeypatch.setattr(hadamard, "_launch", lambda *_: launched.append(size))
    weight = Rotated.of(Lattice.from_tensors(Lattice.describe((16, size), 2), _codes(16, size)), rotation(size, inverted))
    x = torch.randn(6 if size <= 4096 else 2, size, generator=drawn()).to(dtype)
    found = hadamard.rotate(x, to_device(weight).input, to)
    assert not launched and found.dtype == to
    assert error(found, weight.input.apply(x.double())) < {torch.float16: 5e-4, torch.bfloat16: 3e-3}[to]


def _codes(rows, inputs):
    return {"codes": torch.zeros(rows, inputs // 8, dtype=torch.int16), "scale": torch.ones(1)}


@needs_compiler
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_values_are_those_of_the_plain_twin(small_device, bits):
    weight = weight_of(64, 320, bits)
    plain = weight.inner.dequantize()
    for dtype in (torch.bfloat16, torch.float16):
        found = torch.full((32, 320), float("nan"), dtype=dtype)
        lattice.values(to_device(weight).inner, found, 32)
        torch.testing.assert_close(found.float(), plain[32:], rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=1e-6)


def test_tables_give_every_codeword():
    tables, codes = layout.tables(codebook(), small_codebook()), torch.arange(2**16)
    words = tables[0][codes >> 8] ^ tables[1][codes & 255]
    places = torch.tensor(layout.NIBBLES)
    assert torch.equal(((words[:, None] >> places & 15) - 7.5) / 2, codebook())
    assert torch.equal(((tables[2][:, None] >> places & 15) - 8) / 2, small_codebook())


@pytest.mark.parametrize(("rows", "vectors"), [(40, 37), (16, 32)])
def test_layouts_are_permutations(rows, vectors):
    codes = torch.randint(-(2**15), 2**15, (rows, vectors), dtype=torch.int16)
    for second in (None, codes.flip(0), torch.randint(0, 256, (rows, vectors), dtype=torch.uint8)):
        again = layout.decode_codes(layout.encode_codes(codes, second), rows, vectors)
        assert torch.equal(again[0], codes)
        assert again[1] is None if second is None else torch.equal(again[1], second)
    factor = torch.randint(0, 16, (rows, 8 * vectors), dtype=torch.uint8)
    assert torch.equal(layout.decode_left(layout.encode_left(factor), rows, 8 * vectors), factor)
    assert torch.equal(layout.decode_right(layout.encode_right(factor), 8 * vectors), factor)


@needs_compiler
def test_a_linear_runs_from_the_layout_and_gives_back_what_it_stored(small_device, monkeypatch):
    weight = weight_of(128, 256, 3, 16)
    linear = PackedLinear(weight, torch.ones(128), torch.bfloat16)
    linear._take_over(lattice_prepared.prepare_lattice(weight))
    monkeypatch.setattr(lattice_prepared, "SLAB_BYTES", 1)
    for tokens in (1, 35):
        x = torch.randn(2, tokens, 256, generator=drawn()).to(torch.bfloat16)
        assert error(linear(x), weight.matmul(x.double()) + 1) < (2.5e-3 if tokens == 1 else 1e-2)
    assert all(torch.equal(linear.state_dict()[name], tensor) for name, tensor in weight.tensors().items())
    assert all(torch.equal(tensor, weight.tensors()[name]) for name, tensor in linear.packed.tensors().items())
    plain = weight_of(64, 512, 2, output=False)
    again = lattice_prepared.prepare_lattice(plain).stored()
    assert again.keys() == plain.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.tensors().items())


@needs_compiler
def test_real_signs_of_the_output_follow_the_rotation(small_device):
    """They are what tuned blocks store."""
    weight = real_signs(weight_of(128, 256, 2, 16), ("output",))
    weight.stored["output_factors"].mul_(1 + 0.25 * torch.rand(128, generator=drawn()))
    prepared = lattice_prepared.prepare_lattice(weight)
    for tokens in (3, 40):
        x = torch.randn(tokens, 256, generator=drawn()).to(torch.bfloat16)
        assert error(prepared(x), weight.matmul(x.double())) < (4e-3 if tokens == 3 else 1e-2)
    assert prepared.stored().keys() == weight.tensors().keys()
    assert all(torch.equal(tensor, weight.tensors()[name]) for name, tensor in prepared.stored().items())
    assert "input: only" in unsupported(real_signs(weight, ("input",)).description())


def test_what_cannot_run_says_why():
    good = weight_of(64, 256, 2, 16).description()
    assert not unsupported(good)
    assert "rotations" in unsupported(good["inner"])
    assert "4-bit symmetric" in unsupported(good | {"inner": _with_left(good["inner"], {"bits": 8})})
    assert "multiple of 16" in unsupported(good | {"inner": _with_left(good["inner"], {"group_size": 24})})
    assert "2^4" in unsupported(weight_of(64, 24, 2).description())
    offered = {name: reason for name, runs, reason in registry.explain(OP, good, "cpu") if not runs}
    assert offered["cuda lattice"] == "written for CUDA, not for cpu"


def _with_left(inner, change):
    term = inner["terms_1"]
    return inner | {"terms_1": term | {"left": term["left"] | change}}


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compiles_for_hopper(bits, tmp_path, monkeypatch):
    if compiler.missing():
        pytest.skip(compiler.missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"BITS": bits, "COLUMNS": 1, "WARPS": 16, "DEPTH": 2, "RANK": 128, "HELPERS": 4, "UNIT": 8}
    constants |= {"CLUSTER": 8, "FACTOR": 28, "TWOS": 3} if bits == 2 else {"CLUSTER": 1, "FACTOR": 0, "TWOS": 0}
    assert compiler.build("lattice.cu", constants, "sm_90")[:4] == b"\x7fELF"
    assert compiler.build("lattice_turn.cu", {"BLOCKS": 7, "OUT": bits % 2 + 1, "WARPS": 2}, "sm_90")[:4] == b"\x7fELF"
    shape = {"FACTOR": 28, "TWOS": 9, "IN": 0, "OUT": 1, "INVERTED": 1, "FOR_PRODUCT": bits % 2, "THREADS": 512, "CLUSTER": 8}
    assert compiler.build("hadamard.cu", shape, "sm_90")[:4] == b"\x7fELF"
