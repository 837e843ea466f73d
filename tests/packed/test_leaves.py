"""Dense and integer leaves: bytes known in advance, values bit for bit those of the grid, legal cuts only."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.integer import Integer

CASES = pytest.mark.parametrize(
    "settings",
    [
        {"bits": bits, "group_size": size, "symmetric": symmetric, "dtype": dtype, "dynamic": dynamic}
        for bits in (2, 3, 4, 5, 6, 8)
        for size, dynamic in ((None, False), (8, False), (16, False), (16, True), (64, False))
        for symmetric, dtype in ((False, torch.float16), (True, torch.bfloat16))
    ],
)


@CASES
def test_values_are_those_of_the_grid_and_bytes_those_of_the_plan(settings, quantized):
    weight, decoded = quantized(**settings)
    assert torch.equal(weight.dequantize(), decoded)
    assert torch.equal(weight.dequantize(torch.bfloat16), decoded.to(torch.bfloat16))
    rows = torch.tensor([[4, 0], [4, 5]])
    assert torch.equal(weight.rows(rows), decoded[rows])
    x = torch.randn(2, 3, 40)
    assert torch.equal(weight.matmul(x), torch.nn.functional.linear(x, decoded))
    description = weight.description()
    assert description == Integer.describe(
        (6, 40), settings["bits"], settings["group_size"], settings["symmetric"], settings["dtype"], settings["dynamic"]
    )
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weight.tensors().items()}
    assert stored == layout_of(description)
    assert empty(description).nbytes == weight.nbytes
    again = from_tensors(description, weight.tensors())
    assert torch.equal(again.dequantize(), decoded)
    assert empty(description).dequantize().shape == (6, 40)


def test_bytes_by_hand(quantized):
    weight, _ = quantized((6, 40), bits=3, group_size=16)
    assert weight.nbytes == 6 * 15 + 6 * 3 * 2 + 6 * 2  # codes, scales of three groups, their packed zeros
    symmetric, _ = quantized((6, 40), bits=4, group_size=None, symmetric=True)
    assert symmetric.nbytes == 6 * 20 + 6 * 2


@CASES
def test_any_rows_can_be_taken(settings, quantized):
    weight, decoded = quantized(**settings)
    assert torch.equal(weight.take(outputs=slice(1, 4)).dequantize(), decoded[1:4])
    assert torch.equal(weight.take(outputs=torch.tensor([5, 0])).dequantize(), decoded[[5, 0]])


def test_inputs_are_cut_at_groups(quantized):
    weight, decoded = quantized(group_size=16)
    for cut in (slice(16, 32), slice(16, None), slice(None, 16), torch.cat([torch.arange(16, 32), torch.arange(16)])):
        part = weight.take(inputs=cut)
        assert torch.equal(part.dequantize(), decoded[:, cut])
        assert part.nbytes == empty(part.description()).nbytes
    tail_last = torch.cat([torch.arange(16, 32), torch.arange(32, 40)])
    assert torch.equal(weight.take(slice(0, 2), tail_last).dequantize(), decoded[:2][:, tail_last])


@pytest.mark.parametrize(
    "cut", [slice(8, 24), slice(0, 20), torch.arange(39, -1, -1), torch.cat([torch.arange(32, 40), torch.arange(16)])]
)
def test_a_cut_through_a_group_names_the_legal_ones(cut, quantized):
    weight, _ = quantized(group_size=16)
    with pytest.raises(FeatherweightError, match="multiples of 16"):
        weight.take(inputs=cut)


def test_any_inputs_without_groups_or_with_an_index(quantized):
    chosen = torch.tensor([7, 3, 22])
    for settings in ({"group_size": None}, {"group_size": 16, "dynamic": True}):
        weight, decoded = quantized(**settings)
        part = weight.take(inputs=chosen)
        assert torch.equal(part.dequantize(), decoded[:, chosen])
        assert empty(part.description()).nbytes == part.nbytes


def test_dense():
    values = torch.randn(4, 6, dtype=torch.bfloat16)
    weight = Dense(values)
    assert weight.nbytes == 48 == empty(weight.description()).nbytes
    assert weight.description() == Dense.describe((4, 6), torch.bfloat16)
    assert torch.equal(weight.dequantize(), values.float())
    assert torch.equal(weight.rows(torch.tensor([[1], [2]])), values[1:3, None].float())
    assert torch.equal(weight.take(slice(1, 3), torch.tensor([0, 5])).dequantize(), values[1:3][:, [0, 5]].float())
    with pytest.raises(FeatherweightError, match="floating matrix"):
        Dense(torch.zeros(3))
