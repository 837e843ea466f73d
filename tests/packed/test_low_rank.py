"""Low-rank products and normal-float leaves: bytes known in advance, exact round trips, products, cuts, nesting."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.normal import NormalGrid
from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.low_rank import LowRank
from featherweight.packed.normal_float import NormalFloat
from featherweight.packed.sum import Sum
from featherweight.solvers.nearest import round_to_nearest


def make_normal(rows=5, columns=40, bits=4, group_size=16, dtype=torch.float16, seed=0):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    solved = round_to_nearest(values, NormalGrid(bits, dtype), group_size)
    return NormalFloat.from_codes(solved.codes, solved.scales.to(dtype), bits, group_size), solved.decoded


def check(weight, values):
    """Bytes, names and values survive a file; the plan's description gives the same bytes."""
    described = weight.description()
    assert {name: (tuple(t.shape), t.dtype) for name, t in weight.tensors().items()} == layout_of(described)
    assert empty(described).nbytes == weight.nbytes and weight.shape == tuple(values.shape)
    again = from_tensors(described, {name: tensor.clone() for name, tensor in weight.tensors().items()})
    assert torch.equal(again.dequantize(), values)
    x = torch.randn(2, 3, values.shape[1])
    torch.testing.assert_close(again.matmul(x), x @ values.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "dtype"), [(None, torch.float16), (16, torch.bfloat16)])
def test_normal_float(bits, group_size, dtype):
    weight, decoded = make_normal(bits=bits, group_size=group_size, dtype=dtype)
    check(weight, decoded)
    groups = 1 if group_size is None else 3
    assert weight.nbytes == 5 * (40 * bits // 8 + 2 * groups)
    assert torch.equal(weight.take(slice(1, 3), slice(16, 40) if group_size else torch.tensor([7, 3])).dequantize(),
                       decoded[1:3][:, torch.arange(16, 40) if group_size else torch.tensor([7, 3])])  # fmt: skip
    if group_size:
        with pytest.raises(FeatherweightError, match="multiples of 16"):
            weight.take(inputs=slice(8, 24))


def make_product(rank=5, out=40, inputs=56):
    left, left_values = make_normal(rank, out, seed=1)
    right, right_values = make_normal(rank, inputs, seed=2)
    return LowRank(left, right), left_values.T @ right_values


def test_low_rank_and_its_place_in_a_sum():
    weight, values = make_product()
    check(weight, values)
    assert weight.nbytes == weight.left.nbytes + weight.right.nbytes
    rows = torch.tensor([[4, 0], [4, 39]])
    torch.testing.assert_close(weight.rows(rows), values[rows])
    part = weight.take(slice(16, 32), torch.arange(16))
    torch.testing.assert_close(part.dequantize(), values[16:32, :16])
    with pytest.raises(FeatherweightError, match="multiples of 16"):
        weight.take(slice(3, 20))
    dense = Dense(torch.randn(40, 56))
    check(Sum((dense, weight)), dense.values + values)


def test_factors_of_different_ranks_are_refused():
    with pytest.raises(FeatherweightError, match="transposed"):
        LowRank(Dense(torch.zeros(40, 5)), Dense(torch.zeros(5, 56)))
