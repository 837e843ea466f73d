"""Lattice leaves: bytes known in advance, values bit for bit those of the grid, cuts at vectors only."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.e8 import E8Grid
from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.lattice import Lattice

BITS = pytest.mark.parametrize("bits", [2, 3, 4])


def make(bits, inputs=40, rows=6):
    """A lattice weight, and the values that its grid decoded."""
    values = torch.randn(rows, -(-inputs // 8) * 8, generator=torch.Generator().manual_seed(bits)) * 0.02
    grid = E8Grid(bits)
    parameters = grid.fit(values)
    codes = grid.encode(values, parameters)
    return Lattice.from_codes(codes, parameters.scale[0], inputs, bits), grid.decode(codes, parameters)[:, :inputs]


@BITS
@pytest.mark.parametrize("inputs", [40, 37])
def test_values_are_those_of_the_grid_and_bytes_those_of_the_plan(bits, inputs):
    weight, decoded = make(bits, inputs)
    assert torch.equal(weight.dequantize(), decoded)
    assert torch.equal(weight.dequantize(torch.bfloat16), decoded.to(torch.bfloat16))
    rows = torch.tensor([[4, 0], [4, 5]])
    assert torch.equal(weight.rows(rows), decoded[rows])
    x = torch.randn(2, 3, inputs)
    torch.testing.assert_close(weight.matmul(x), x @ decoded.T)
    description = weight.description()
    assert description == Lattice.describe((6, inputs), bits)
    assert {name: (tuple(each.shape), each.dtype) for name, each in weight.tensors().items()} == layout_of(description)
    assert empty(description).nbytes == weight.nbytes == 6 * 5 * bits + 4
    assert torch.equal(from_tensors(description, weight.tensors()).dequantize(), decoded)
    assert empty(description).dequantize().shape == (6, inputs)


@BITS
def test_outputs_and_whole_vectors_can_be_taken(bits):
    weight, decoded = make(bits, 37)
    order = torch.cat((torch.arange(16, 24), torch.arange(8)))
    assert torch.equal(weight.take(torch.tensor([5, 0]), order).dequantize(), decoded[[5, 0]][:, order])
    assert torch.equal(weight.take(inputs=slice(32, None)).dequantize(), decoded[:, 32:])
    assert torch.equal(weight.take(slice(2, 4)).dequantize(), decoded[2:4])
    for cut in (slice(4, 12), torch.arange(37).flip(0)):
        with pytest.raises(FeatherweightError, match="cut goes through"):
            weight.take(inputs=cut)
