"""Sliced weights: the small multiplication equals the masked one, bytes are known in advance, cuts and nesting."""

import json

import pytest
import torch

from featherweight.packed.base import empty, from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedLinear
from featherweight.packed.sliced import Sliced

SHAPE = (12, 40)


def make(side, settings, quantized, seed=0):
    """A sliced weight, and the masked values that it stands for."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.randperm(size, generator=generator)[: size * 3 // 4].sort().values for size in SHAPE]
    inner_shape = tuple(len(kept[i]) if side in (i, "both") else SHAPE[i] for i in (0, 1))
    if settings is None:
        values = torch.randn(inner_shape, generator=generator)
        inner = Dense(values)
    else:
        inner, values = quantized(inner_shape, **settings)
    outputs, inputs = (kept[i] if side in (i, "both") else None for i in (0, 1))
    whole = torch.zeros(SHAPE)
    rows = torch.arange(SHAPE[0]) if outputs is None else outputs
    columns = torch.arange(SHAPE[1]) if inputs is None else inputs
    whole[rows[:, None], columns] = values
    return Sliced.of(inner, SHAPE, inputs, outputs), whole


@pytest.mark.parametrize("side", [0, 1, "both"])
@pytest.mark.parametrize("settings", [None, {"bits": 4, "group_size": 8}, {"bits": 8, "group_size": None, "symmetric": True}])
def test_sliced(side, settings, quantized):
    weight, whole = make(side, settings, quantized)
    description = json.loads(json.dumps(weight.description()))
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weight.tensors().items()}
    assert stored == layout_of(description) and empty(description).nbytes == weight.nbytes
    assert torch.equal(weight.dequantize(), whole)
    assert not whole[~weight.support].any() and int(weight.support.sum()) == weight.inner.shape[0] * weight.inner.shape[1]
    again = from_tensors(description, weight.tensors())
    assert torch.equal(again.dequantize(), whole) and again.description() == weight.description()
    for dtype in (torch.float32, torch.bfloat16):
        for x in (torch.randn(3, 40), torch.randn(2, 5, 40)):
            product = weight.matmul(x.to(dtype))
            expected = x.to(dtype).float() @ whole.to(dtype).float().T
            assert product.dtype == dtype and product.shape == expected.shape
            torch.testing.assert_close(product.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.2, rtol=1e-2)
    part = weight.take(torch.tensor([11, 0, 5]), None)
    assert torch.equal(part.dequantize(), whole[[11, 0, 5]])


def test_dropped_outputs_still_get_their_bias(quantized):
    weight, whole = make(0, None, quantized)
    bias, x = torch.randn(12), torch.randn(4, 40)
    torch.testing.assert_close(PackedLinear(weight, bias)(x), x @ whole.T + bias)


def test_inputs_can_be_cut_and_reordered(quantized):
    weight, whole = make("both", {"bits": 4, "group_size": None}, quantized)
    columns = torch.randperm(40)[:17]
    assert torch.equal(weight.take(slice(2, 9), columns).dequantize(), whole[2:9][:, columns])
