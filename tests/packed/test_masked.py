"""Masked weights: kept values bit for bit, exact zeros, bytes known in advance, the smallest form of the mask."""

import json

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.packed.base import empty, from_tensors
from featherweight.packed.combinations import forms_of, mask_width, read_mask, write_mask
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked

SHAPE = (6, 40)
PATTERNS = [("layer", 0.5), ("layer", 0.33), ("layer", 0.02), ("layer", 0.97), ("row", 0.4), ("2:4", None), ("4:8", None),
            ("1:8", None), ("3:5", None)]  # fmt: skip
LEAVES = [None] + [
    {"bits": bits, "group_size": size, "symmetric": symmetric, "dynamic": dynamic}
    for bits in (2, 3, 4, 8)
    for size, dynamic in ((None, False), (8, False), (16, False), (16, True))
    for symmetric in (False, True)
]


def masked(quantized, name, ratio, settings, seed=0):
    """A masked weight, and the values it should have."""
    pattern = Pattern.parse(name, ratio)
    mask = ~pattern.dropped(torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)))
    if settings is None:
        values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed + 1)).to(torch.bfloat16)
        leaf, decoded = Dense(values), values.float()
    else:
        leaf, decoded = quantized(SHAPE, **settings)
    described = Masked.describe(leaf.description(), pattern.kept(SHAPE), pattern.name if pattern.per_row else "unstructured")
    return Masked.of(leaf, mask, described), torch.where(mask, decoded, 0.0), mask


@pytest.mark.parametrize(("name", "ratio"), PATTERNS)
@pytest.mark.parametrize("settings", LEAVES)
def test_values_zeros_and_bytes_are_exact(name, ratio, settings, quantized):
    weight, expected, mask = masked(quantized, name, ratio, settings)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.values.dequantize(), expected)
    assert not weight.dequantize()[~mask].any()
    if weight.description()["mask"] != "implied":
        assert torch.equal(weight.support, mask)
    assert torch.equal(weight.support & mask, weight.support)
    description = json.loads(json.dumps(weight.description()))
    stored = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in weight.tensors().items()}
    assert stored == Masked.layout(description)
    assert empty(description).nbytes == weight.nbytes == description["bytes"][description["mask"]]
    assert weight.nbytes == min(description["bytes"].values()) <= empty(description["values"]).nbytes
    again = from_tensors(description, weight.tensors())
    assert torch.equal(again.dequantize(), expected) and again.description() == weight.description()
    assert empty(description).dequantize().shape == SHAPE


def test_bytes_by_hand(quantized):
    half, _, _ = masked(quantized, "layer", 0.5, None)
    assert half.nbytes == 120 * 2 + 6 * 5  # kept values, one bit per weight
    assert half.tensors()["values_values"].shape == (1, 120)
    pairs, _, _ = masked(quantized, "1:8", None, {"bits": 4, "group_size": 16})
    assert pairs.description()["mask"] == "index"
    assert pairs.nbytes == 6 * 3 + 6 * 3 * 2 + 6 * 2 + 6 * 2  # 5 codes a row, scales, zero points, 5 places of 3 bits
    assert pairs.description()["bytes"]["bitmap"] == pairs.nbytes + 6 * 3
    few, _, _ = masked(quantized, "layer", 0.02, {"bits": 4, "group_size": None})
    assert few.description()["mask"] == "implied" and few.nbytes == few.values.nbytes and "mask" not in few.tensors()


@pytest.mark.parametrize(("name", "ratio"), PATTERNS)
@pytest.mark.parametrize("settings", [None, {"bits": 3, "group_size": 8}, {"bits": 4, "group_size": 8, "symmetric": True}])
def test_cuts(name, ratio, settings, quantized):
    weight, expected, _ = masked(quantized, name, ratio, settings)
    for outputs, inputs in (
        (slice(1, 4), None),
        (torch.tensor([5, 0]), None),
        (None, slice(8, 32)),
        (slice(0, 2), slice(8, 16)),
    ):
        part = weight.take(outputs, inputs)
        values = expected if outputs is None else expected[outputs]
        assert torch.equal(part.dequantize(), values if inputs is None else values[:, inputs])
        assert empty(part.description()).nbytes == part.nbytes


def test_rows_and_products(quantized):
    weight, expected, _ = masked(quantized, "2:4", None, {"bits": 4, "group_size": 16})
    rows, x = torch.tensor([[4, 0], [4, 5]]), torch.randn(2, 3, 40)
    assert torch.equal(weight.rows(rows), expected[rows])
    assert torch.equal(weight.matmul(x), torch.nn.functional.linear(x, expected))
    assert torch.equal(weight.dequantize(torch.bfloat16), expected.bfloat16())


def test_errors(quantized):
    weight, _, mask = masked(quantized, "layer", 0.5, None)
    with pytest.raises(FeatherweightError, match="cannot hold a mask"):
        Masked.describe(weight.description(), 3)
    with pytest.raises(FeatherweightError, match="does not fit"):
        Masked.describe(Dense.describe(SHAPE, torch.float16), 7, "row")
    with pytest.raises(FeatherweightError, match="another number"):
        Masked.of(weight.values, ~mask | mask, weight.description())


@pytest.mark.parametrize(
    ("keep", "of", "form", "bits"), [(2, 4, "combination", 3), (4, 8, "combination", 7), (1, 4, "index", 2)]
)
def test_masks_of_few_combinations_take_one_number_each(keep, of, form, bits):
    pattern = Pattern.parse(f"{keep}:{of}")
    mask = ~pattern.dropped(torch.rand(5, 320, generator=torch.Generator().manual_seed(0)))
    described = Masked.describe(Dense(torch.ones(5, 320)).description(), int(mask.sum()), pattern.name)
    weight = Masked.of(Dense(torch.ones(5, 320)), mask, described)
    assert described["mask"] == form and torch.equal(weight.support, mask)
    assert weight.tensors()["mask"].shape == (5, 320 // of * bits // 8)


@pytest.mark.parametrize(("keep", "of"), [(1, 2), (2, 4), (3, 4), (2, 8), (4, 8), (7, 8), (2, 16)])
def test_every_form_of_a_mask_reads_back(keep, of):
    mask = ~Pattern.parse(f"{keep}:{of}").dropped(torch.rand(7, 6 * of, generator=torch.Generator().manual_seed(keep)))
    for form in forms_of(keep, of):
        stored = write_mask(form, mask, keep, of)
        assert stored.shape == (7, mask_width(form, keep, of, 6 * of))
        assert torch.equal(read_mask(form, stored, keep, of, 6 * of), mask)
