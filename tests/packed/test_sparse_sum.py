"""Sparse rows, sums and two-level weights: bytes known in advance, exact round trips, products, cuts."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.two_level import Quantized, TwoLevelGrid
from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.sparse_rows import SparseRows
from featherweight.packed.sum import Sum
from featherweight.packed.two_level import TwoLevel

GRIDS = [
    TwoLevelGrid(3),
    TwoLevelGrid(4, 5, 2, second_group_size=7),
    TwoLevelGrid(2, None, None),
    TwoLevelGrid(3, round_zero=True),
    TwoLevelGrid(4, 3, 3, round_zero=True),
    TwoLevelGrid(3, symmetric=True),
]


def check(weight, values):
    """What every storage promises."""
    description = weight.description()
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weight.tensors().items()}
    assert stored == layout_of(description) and empty(description).nbytes == weight.nbytes
    assert torch.equal(weight.dequantize(), values)
    again = from_tensors(description, {name: tensor.clone() for name, tensor in weight.tensors().items()})
    assert torch.equal(again.dequantize(), values) and again.description() == description
    assert torch.equal(weight.dequantize(torch.bfloat16), values.to(torch.bfloat16))
    for x in (torch.randn(2, 3, values.shape[1]), torch.randn(1, values.shape[1]), torch.randn(0, values.shape[1])):
        torch.testing.assert_close(weight.matmul(x), x @ values.T, atol=1e-5, rtol=1e-4)
    assert weight.matmul(torch.randn(2, values.shape[1]).bfloat16()).dtype == torch.bfloat16


def make_sparse(rows=6, columns=40, share=0.1, seed=0, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator).to(dtype)
    mask = torch.rand(rows, columns, generator=generator) < share
    return SparseRows.from_dense(values, mask), torch.where(mask, values.float(), 0.0)


def make_two_level(grid, rows=40, columns=40, group_size=16, indexed=False, seed=0):
    """A two-level weight and what its grid decoded."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    order = torch.randperm(columns, generator=generator) if indexed else torch.arange(columns)
    codes, decoded, index, fitted = torch.empty_like(values), torch.empty_like(values), torch.empty(columns), []
    for group, start in enumerate(range(0, columns, group_size)):
        members = order[start : start + group_size]
        fitted.append(grid.fit(values[:, members]))
        codes[:, members] = grid.encode(values[:, members], fitted[-1])
        decoded[:, members] = grid.decode(codes[:, members], fitted[-1])
        index[members] = group
    zeros = None if grid.symmetric else Quantized.join([each.zeros for each in fitted])
    scales = Quantized.join([each.scales for each in fitted])
    return TwoLevel.from_codes(codes.to(torch.uint8), scales, zeros, grid, group_size, index if indexed else None), decoded


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("width", "share", "form"),
    [(300, 0.0, "list"), (300, 0.001, "list"), (300, 0.1, "tiles"), (16, 0.3, "tiles"), (300, 1.0, "tiles")],
)
def test_sparse_rows(width, share, form, dtype):
    weight, values = make_sparse(columns=width, share=share, dtype=dtype)
    check(weight, values)
    entries = int(values.count_nonzero())
    sizes = {"list": 4 * entries, "tiles": 6 * -(-width // 255) + entries, "rows": 7 * 4 + 2 * entries}
    assert weight.description()["form"] == form == min(sizes, key=sizes.get)
    assert weight.nbytes == sizes[form] + entries * dtype.itemsize
    rows, columns = torch.tensor([4, 0, 4]), torch.tensor([width - 1, 3])
    assert torch.equal(weight.take(slice(1, 5), columns).dequantize(), values[1:5][:, columns])
    assert torch.equal(weight.take(rows).dequantize(), values[rows])


def test_an_entry_that_is_zero_stays_stored():
    mask = torch.tensor([[True, False], [False, True]])
    weight = SparseRows.from_dense(torch.zeros(2, 2), mask)
    assert weight.description()["entries"] == 2 and torch.equal(torch.stack(weight.positions()), mask.nonzero().T)
    with pytest.raises(FeatherweightError, match="65504"):
        SparseRows.from_dense(torch.full((2, 2), 1e6), mask)


@pytest.mark.parametrize(("width", "dtype"), [(65536, torch.int16), (65537, torch.int32)])
def test_columns_of_wide_weights_are_read_as_unsigned(width, dtype):
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[0, 40000] = mask[1, width - 1] = True
    weight = SparseRows.from_dense(mask.float() * 3, mask)
    assert weight.tensors()["columns"].dtype == dtype
    check(weight, mask.float() * 3)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rows", [33, 48])
def test_two_level(grid, indexed, rows):
    weight, decoded = make_two_level(grid, rows, indexed=indexed)
    assert weight.description() == TwoLevel.describe((rows, 40), 16, grid, indexed)
    check(weight, decoded)
    block = grid.second_group_size
    cut = torch.cat([torch.arange(block, 2 * block), torch.arange(block)])
    assert torch.equal(weight.take(cut).dequantize(), decoded[cut])
    columns = torch.cat([torch.arange(16, 32), torch.arange(16)])
    part = weight.take(slice(0, block), torch.tensor([5, 3]) if indexed else columns)
    check(part, decoded[:block][:, torch.tensor([5, 3]) if indexed else columns])


def test_a_cut_through_a_group_names_the_legal_ones():
    weight, _ = make_two_level(TwoLevelGrid(3))
    for cut in ({"outputs": slice(3, 20)}, {"inputs": slice(8, 24)}):
        with pytest.raises(FeatherweightError, match="multiples of 16"):
            weight.take(**cut)


def test_bytes_of_two_level_by_hand():
    weight, _ = make_two_level(TwoLevelGrid(3), rows=33, columns=40, indexed=True)
    assert weight.nbytes == 33 * 15 + 2 * (33 * 2 + 3 * 3 * 2 * 2) + 40  # codes; scales and zeros; a group per input


def test_sum_adds_and_nests():
    dense, decoded = make_two_level(TwoLevelGrid(3), 6, 40)
    sparse, values = make_sparse()
    check(Sum((dense, sparse)), decoded + values)
    third = torch.randn(6, 40)
    nested = Sum((Sum((dense, sparse)), Dense(third)))
    check(nested, (decoded + values) + third)
    assert "terms_0_terms_1_counts" in nested.tensors()
    rows = torch.arange(6)
    assert torch.equal(nested.take(rows).dequantize(), nested.dequantize())
    with pytest.raises(FeatherweightError, match="one shape"):
        Sum((dense, Dense(torch.zeros(3, 3))))


def test_a_wide_row_of_few_entries_is_offset_by_rows():
    mask = torch.rand(40, 60000, generator=torch.Generator().manual_seed(0)) < 2e-4
    weight = SparseRows.from_dense(mask.float(), mask)
    assert weight.description()["form"] == "rows" and weight.nbytes == 41 * 4 + 4 * int(mask.sum())
    assert torch.equal(weight.dequantize(), mask.float())
