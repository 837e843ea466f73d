"""Floating leaves: values bit for bit those of the grid, bytes known in advance, legal cuts, masks, files."""

import json

import pytest
import torch
from safetensors.torch import load_file

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import FloatingGrid
from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.files import file_bytes, write
from featherweight.packed.floating import Floating
from featherweight.packed.linear import PackedLinear
from featherweight.packed.masked import Masked

CASES = pytest.mark.parametrize(
    ("element", "scale_dtype", "group_size", "dynamic"),
    [
        ("e4m3", torch.bfloat16, None, False),
        ("e4m3", torch.float16, 16, True),
        ("e2m1", torch.float8_e4m3fn, 16, False),
        ("e2m1", torch.float8_e4m3fn, 16, True),
        ("e2m1", torch.float8_e8m0fnu, 32, False),
    ],
)


def make(element, scale_dtype, group_size, dynamic, shape=(6, 40)):
    """A floating weight and the values that its grid decoded."""
    generator = torch.Generator().manual_seed(0)
    values, size = torch.randn(*shape, generator=generator), group_size or shape[1]
    order = torch.randperm(shape[1], generator=generator) if dynamic else torch.arange(shape[1])
    grid = FloatingGrid(element, scale_dtype).over(values)
    codes, decoded, scales = torch.empty_like(values), torch.empty_like(values), []
    index = torch.empty(shape[1], dtype=torch.int16)
    for group, start in enumerate(range(0, shape[1], size)):
        columns = order[start : start + size]
        parameters = grid.fit(values[:, columns])
        codes[:, columns] = grid.encode(values[:, columns], parameters)
        decoded[:, columns] = grid.decode(codes[:, columns], parameters)
        index[columns] = group
        scales.append(parameters.scale)
    packed = Floating.from_codes(codes.to(torch.uint8), torch.cat(scales, 1), grid, group_size, index if dynamic else None)
    return packed, decoded, grid


@CASES
def test_values_are_those_of_the_grid_and_bytes_those_of_the_plan(element, scale_dtype, group_size, dynamic, tmp_path):
    weight, decoded, grid = make(element, scale_dtype, group_size, dynamic)
    assert torch.equal(weight.dequantize(), decoded)
    rows, x = torch.tensor([[4, 0], [4, 5]]), torch.randn(2, 3, 40)
    assert torch.equal(weight.rows(rows), decoded[rows])
    assert torch.equal(weight.matmul(x), torch.nn.functional.linear(x, decoded))
    description = json.loads(json.dumps(weight.description()))
    assert description == Floating.describe((6, 40), grid, group_size, dynamic)
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weight.tensors().items()}
    assert stored == layout_of(description) and empty(description).nbytes == weight.nbytes
    write(tmp_path / "weight.safetensors", weight.tensors())
    assert (tmp_path / "weight.safetensors").stat().st_size == file_bytes(layout_of(description))
    again = from_tensors(description, load_file(tmp_path / "weight.safetensors"))
    assert torch.equal(again.dequantize(), decoded) and empty(description).dequantize().shape == (6, 40)


def test_bytes_by_hand():
    nvfp4, mxfp4, fp8 = (make(*case)[0].nbytes for case in (
        ("e2m1", torch.float8_e4m3fn, 16, False), ("e2m1", torch.float8_e8m0fnu, 32, False), ("e4m3", torch.bfloat16, None, False)
    ))  # fmt: skip
    assert nvfp4 == 6 * 20 + 6 * 3 + 4  # codes, a byte for each scale, the tensor's own
    assert mxfp4 == 6 * 20 + 6 * 2 and fp8 == 6 * 40 + 6 * 2


@CASES
def test_cuts(element, scale_dtype, group_size, dynamic):
    weight, decoded, _ = make(element, scale_dtype, group_size, dynamic)
    assert torch.equal(weight.take(torch.tensor([5, 0])).dequantize(), decoded[[5, 0]])
    chosen = torch.tensor([7, 3, 22])
    whole = weight.indexed()
    assert torch.equal(whole.take(slice(1, 4), chosen).dequantize(), decoded[1:4, chosen])
    if group_size is not None and not dynamic:
        assert torch.equal(weight.take(inputs=slice(32, None)).dequantize(), decoded[:, 32:])
        with pytest.raises(FeatherweightError, match=f"multiples of {group_size}"):
            weight.take(inputs=chosen)


@CASES
@pytest.mark.parametrize("pattern", ["unstructured", "row", "2:4"])
def test_masks(element, scale_dtype, group_size, dynamic, pattern):
    weight, decoded, _ = make(element, scale_dtype, group_size, dynamic)
    mask = torch.zeros(6, 10, 4, dtype=torch.bool)
    mask[..., 1:3] = True
    mask = mask.view(6, 40)
    for implied in (False, True):
        masked = Masked.of(weight, mask, Masked.describe(weight.description(), 120, pattern, implied))
        assert torch.equal(masked.dequantize(), decoded * mask) and torch.equal(masked.values.dequantize(), decoded * mask)
        assert masked.nbytes == empty(masked.description()).nbytes
        assert torch.equal(masked.take(slice(2, 5)).dequantize(), (decoded * mask)[2:5])


def test_stored_dtypes_survive_a_change_of_the_models_dtype():
    weight, decoded, _ = make("e2m1", torch.float8_e4m3fn, 16, False)
    linear = PackedLinear(weight, dtype=torch.float32).to(torch.bfloat16)
    assert torch.equal(linear.packed.dequantize(), decoded) and linear.packed.scales.dtype == torch.float8_e4m3fn
    x = torch.randn(3, 40, dtype=torch.bfloat16)
    slow = linear(x)
    linear.cache_dense()
    assert torch.equal(linear(x), slow)
