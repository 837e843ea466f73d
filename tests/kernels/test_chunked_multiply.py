"""The products of weights in chunks, their own CUDA source run on a CPU, against float64; their layouts."""

from dataclasses import replace

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.kernels.cuda import bitmap, bitmap_codes, compiler, stream, two_level
from featherweight.kernels.cuda import two_of_four as two_of_four_module
from featherweight.kernels.cuda.sparse_list import SparseParts
from featherweight.kernels.cuda.stream_values import values
from featherweight.kernels.cuda.two_level import TwoLevelParts

#: Cuts small enough for an emulated block.
CUTS = ((2, 1, 2, 1),)


def two_level_parts(rows, inputs, bits, second_bits, ordered, seed=0):
    """A random weight in groups of 16."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // 16)
    second = [torch.randint(0, 2**second_bits, (rows, groups), dtype=torch.uint8, generator=generator) for _ in range(2)]

    def grids(low, high, zero):
        shape = (-(-rows // 16), groups)
        step = low + (high - low) * torch.rand(shape, generator=generator)
        both = torch.stack([step, zero * (1 + torch.rand(shape, generator=generator))], -1).half().float()
        return both.repeat_interleave(16, 0)[:rows]

    codes = torch.randint(0, 2**bits, (rows, inputs), dtype=torch.uint8, generator=generator)
    index = torch.arange(inputs) // 16
    if ordered:
        index = index[torch.randperm(inputs, generator=generator)]
    return TwoLevelParts(codes, *second, grids(0.002, 0.005, -3), grids(0.3, 0.4, -2.5), index)


def values_of(parts):
    """Of a two-level weight, float64."""
    pairs = ((parts.scale_codes, parts.scale_grids), (parts.zero_codes, parts.zero_grids))
    scale, zero = ((grids[..., 0].double() * (codes - grids[..., 1].double()))[:, parts.index] for codes, grids in pairs)
    return scale * (parts.codes - zero)


def sparse_parts(rows, inputs, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(rows * inputs, generator=generator)[:count]
    return SparseParts(chosen // inputs, chosen % inputs, torch.randn(count, generator=generator).half())


def run(module, weight, x, bias, shared=200_000):
    y = torch.full((len(x), weight.chunked.rows), float("nan"), dtype=x.dtype)
    shape = stream.shape_of(*weight.chunked.cut, len(x), weight.chunked.segment, 3, shared, cuts=CUTS)
    module.multiply(x, weight, bias, y, shape)
    assert not weight.chunked.arrivals.any()  # ready for the next launch
    return y


def check(found, expected):
    assert (found.double() - expected).norm() <= expected.norm() * (3e-3 if found.dtype == torch.bfloat16 else 1.5e-3)


@needs_compiler
@pytest.mark.parametrize(
    ("bits", "second_bits", "dtype", "rows", "inputs", "tokens", "ordered", "entries"),
    [
        (3, 3, torch.bfloat16, 40, 1024, 1, True, 500),
        (3, 3, torch.float16, 96, 600, 9, False, 900),
        (2, 4, torch.bfloat16, 32, 520, 3, False, 0),
        (4, 4, torch.bfloat16, 50, 768, 2, True, 40),
        (3, 3, torch.bfloat16, 16, 4608, 8, False, 700),
    ],
)
def test_two_level_product(emulation, bits, second_bits, dtype, rows, inputs, tokens, ordered, entries):  # noqa: F811
    parts = two_level_parts(rows, inputs, bits, second_bits, ordered)
    sparse = sparse_parts(rows, inputs, entries) if entries else None
    weight = two_level.encode(parts, bits, second_bits, sparse)
    dense = values_of(parts)
    if sparse is not None:
        dense[sparse.rows, sparse.columns] += sparse.values.double()
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(tokens, inputs, generator=generator) * torch.logspace(-2, 2, inputs)).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype)
    check(run(two_level, weight, x, bias), x.double() @ dense.T + bias.double())


@pytest.mark.parametrize(("bits", "second_bits", "ordered"), [(2, 4, True), (3, 3, False), (3, 3, True), (4, 4, True)])
def test_two_level_layout_gives_everything_back(bits, second_bits, ordered):
    parts, sparse = two_level_parts(50, 4680, bits, second_bits, ordered), sparse_parts(50, 4680, 3000)
    index = parts.index if ordered else None
    found, entries = two_level.decode(two_level.encode(parts, bits, second_bits, sparse), index)
    for name in ("codes", "scale_codes", "zero_codes", "scale_grids", "zero_grids"):
        assert torch.equal(getattr(found, name), getattr(parts, name)), name
    order = torch.argsort(sparse.rows * 4680 + sparse.columns)
    for name in ("rows", "columns", "values"):
        assert torch.equal(getattr(entries, name), getattr(sparse, name)[order]), name


def two_of_four(rows, inputs, bits, group, dtype, zeros, seed=0):
    """A random 2:4 weight on the device's terms, its values in float64, and what it was made from."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, inputs // 4, 4, generator=generator).topk(2, -1).indices
    mask = torch.zeros(rows, inputs // 4, 4, dtype=torch.bool).scatter_(2, chosen, True).view(rows, inputs)
    places = chosen.sort(-1).values.view(rows, -1).to(torch.uint8)
    if bits == 16:
        values = torch.randn(rows, inputs, generator=generator).to(dtype)
        weight = two_of_four_module.encode_values(values[mask].view(rows, -1), places)
        return weight, values.double() * mask, (values, mask, None, None)
    codes = torch.randint(0, 16, (rows, inputs), dtype=torch.uint8, generator=generator)
    groups = -(-inputs // group)
    scales = (torch.rand(rows, groups, generator=generator) + 0.5).half()
    points = torch.randint(0, 16, (rows, groups), dtype=torch.uint8, generator=generator)
    weight = two_of_four_module.encode_codes(codes[mask].view(rows, -1), places, scales, points if zeros else None, group)
    spread = [each.double().repeat_interleave(group, 1)[:, :inputs] for each in (scales, points if zeros else points * 0 + 8)]
    return weight, (codes.double() - spread[1]) * spread[0] * mask, (codes, mask, scales, points if zeros else None)


FORMS = [
    (4, 128, torch.bfloat16, False),
    (4, 32, torch.float16, True),
    (4, 512, torch.bfloat16, True),
    (16, 0, torch.bfloat16, False),
]


@needs_compiler
@pytest.mark.parametrize(("bits", "group", "dtype", "zeros"), FORMS)
@pytest.mark.parametrize(("rows", "inputs", "tokens"), [(20, 520, 1), (16, 256, 11)])
def test_two_of_four_product(emulation, rows, inputs, tokens, bits, group, dtype, zeros):  # noqa: F811
    weight, dense, _ = two_of_four(rows, inputs, bits, group, dtype, zeros)
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(tokens, inputs, generator=generator).to(dtype), torch.randn(rows, generator=generator).to(dtype)
    check(run(two_of_four_module, weight, x, bias), x.double() @ dense.T + bias.double())


@pytest.mark.parametrize(("bits", "group", "dtype", "zeros"), FORMS)
def test_two_of_four_layout_gives_everything_back(bits, group, dtype, zeros):
    weight, _, (values, mask, scales, points) = two_of_four(50, 1032, bits, group, dtype, zeros)
    kept, places, numbers = two_of_four_module.decode(weight)
    assert torch.equal(kept, values[mask].view(50, -1))
    assert torch.equal(places.long(), mask.view(50, -1, 4).nonzero()[:, 2].view(50, -1))
    repeat = max(1, group // 256)
    for found, given in zip(numbers, (scales, points), strict=False):
        assert torch.equal(found[:, ::repeat][:, : given.shape[1]], given)


def sparse_values(rows, inputs, dtype, seed=0):
    """Random values, more of them kept in some inputs than in others."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, inputs, generator=generator) < torch.rand(inputs, generator=generator)
    return torch.randn(rows, inputs, generator=generator).to(dtype), mask


@needs_compiler
@pytest.mark.parametrize(("dtype", "rows", "inputs", "tokens"), [(torch.bfloat16, 40, 1032, 1), (torch.float16, 16, 512, 10)])
def test_bitmap_product(emulation, dtype, rows, inputs, tokens):  # noqa: F811
    values, mask = sparse_values(rows, inputs, dtype)
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(tokens, inputs, generator=generator).to(dtype), torch.randn(rows, generator=generator).to(dtype)
    check(run(bitmap, bitmap.encode(values, mask), x, bias), x.double() @ (values.double() * mask).T + bias.double())


def test_bitmap_layout_gives_everything_back():
    values, mask = sparse_values(50, 1032, torch.bfloat16)
    found, there = bitmap.decode(bitmap.encode(values, mask))
    assert torch.equal(there, mask)
    assert torch.equal(found, values * mask)


def sparse_codes(rows, inputs, group, zeros, share, seed=0):
    """Random codes, more of them kept in some inputs than in others unless `share` says how many."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(inputs, generator=generator) if share is None else share
    mask = torch.rand(rows, inputs, generator=generator) < kept
    codes = torch.randint(0, 16, (rows, inputs), dtype=torch.uint8, generator=generator)
    groups = -(-inputs // group)
    scales = (torch.rand(rows, groups, generator=generator) + 0.5).half()
    points = torch.randint(0, 16, (rows, groups), dtype=torch.uint8, generator=generator)
    weight = bitmap_codes.encode(codes, mask, scales, points if zeros else None, group)
    spread = [each.double().repeat_interleave(group, 1)[:, :inputs] for each in (scales, points if zeros else points * 0 + 8)]
    return weight, (codes - spread[1]) * spread[0] * mask, (codes, mask, scales, points if zeros else None)


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "rows", "inputs", "tokens", "group", "zeros", "share"),
    [
        (torch.bfloat16, 40, 1032, 1, 128, False, None),
        (torch.float16, 16, 512, 10, 32, True, None),
        (torch.bfloat16, 20, 256, 1, 64, True, 1.0),
        (torch.float16, 16, 520, 3, 512, True, 0.5),
    ],
)
def test_bitmap_codes_product(emulation, dtype, rows, inputs, tokens, group, zeros, share):  # noqa: F811
    weight, dense, _ = sparse_codes(rows, inputs, group, zeros, share)
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(tokens, inputs, generator=generator).to(dtype), torch.randn(rows, generator=generator).to(dtype)
    check(run(bitmap_codes, weight, x, bias), x.double() @ dense.T + bias.double())
    slab = torch.full((-(-rows // 16) * 16, -(-inputs // 256) * 256), float("nan"), dtype=dtype)
    values(*bitmap_codes.kernel(weight), weight.chunked, slab, 0)
    assert torch.equal(slab[:rows, :inputs], dense.to(dtype))


@pytest.mark.parametrize(("group", "zeros"), [(32, True), (128, False), (512, True)])
def test_bitmap_codes_layout_gives_everything_back(group, zeros):
    weight, _, (codes, mask, scales, points) = sparse_codes(50, 1032, group, zeros, None)
    found, there, numbers = bitmap_codes.decode(weight)
    assert torch.equal(there, mask) and torch.equal(found[mask], codes[mask])
    for each, given in zip(numbers, (scales, points), strict=False):
        assert torch.equal(each[:, :: max(1, group // 256)][:, : given.shape[1]], given)


@needs_compiler
def test_dropped_codes_add_nothing(emulation):  # noqa: F811
    weight, _, _ = sparse_codes(16, 256, 64, True, 0.0)
    x = 1e4 * torch.randn(2, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert not run(bitmap_codes, weight, x, None).any()


@needs_compiler
def test_large_activations_do_not_overflow(emulation):  # noqa: F811
    parts = two_level_parts(16, 256, 3, 3, False)
    weight = two_level.encode(parts, 3, 3, None)
    x = (20000 + torch.randn(1, 256, generator=torch.Generator().manual_seed(5))).half()
    expected = x.double() @ values_of(parts).T / 4
    weight = replace(weight, chunked=replace(weight.chunked, factor=weight.chunked.factor / 4))  # or y itself would
    check(run(two_level, weight, x, None), expected)


@needs_compiler
@pytest.mark.parametrize(("tokens", "shared"), [(1, 29_000), (3, 40_000)])
def test_blocks_share_tiles(emulation, tokens, shared):  # noqa: F811
    parts, sparse = two_level_parts(48, 4608, 3, 3, False), sparse_parts(48, 4608, 900)
    weight = two_level.encode(parts, 3, 3, sparse)
    shape = stream.shape_of(*weight.chunked.cut, tokens, weight.chunked.segment, 3, shared, cuts=CUTS)
    assert shape.split_chunks < 18 and shape.slots > 1
    dense = values_of(parts)
    dense[sparse.rows, sparse.columns] += sparse.values.double()
    x = torch.randn(tokens, 4608, generator=torch.Generator().manual_seed(4)).bfloat16()
    check(run(two_level, weight, x, None, shared), x.double() @ dense.T)


@pytest.mark.parametrize(
    ("source", "constants"),
    [
        ("two_level.cu", {"BITS": 3, "SECOND_BITS": 3, "LISTED": 1}),
        ("two_of_four.cu", {"BITS": 4, "GROUP": 128, "SCALE": 0, "ZEROS": 1}),
        ("bitmap.cu", {"SLOT_BYTES": 5120}),
        ("bitmap_codes.cu", {"GROUP": 128, "SCALE": 0, "ZEROS": 1, "SLOT_BYTES": 1792}),
    ],
)
def test_chunked_kernels_compile_for_hopper(source, constants):
    if compiler.missing():
        pytest.skip(compiler.missing())
    shape = {"ACTIVATION": 0, "COLUMNS": 2, "WARPS": 8, "COLLECTORS": 2, "STAGES": 2, "RESIDENT": 1, "SINGLE": 0}
    assert compiler.build(source, shape | constants, "sm_90")[:4] == b"\x7fELF"
