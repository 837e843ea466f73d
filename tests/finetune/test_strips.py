"""Leading ranks taken out of rounded low-rank terms, and weights thawed for training."""

from __future__ import annotations

import pytest
import torch

from featherweight.finetune.strips import dense_factors, split_ranks, thaw
from featherweight.methods.factors import Format
from featherweight.models.transforms import Hadamard
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.lattice import Lattice
from featherweight.packed.low_rank import LowRank
from featherweight.packed.rotated import Rotated
from featherweight.packed.sum import Sum


def weight(bits: int = 4, rank: int = 6) -> PackedWeight:
    """As CALDERA stores one, `[32, 64]`: a lattice weight and a low-rank term between rotations."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**16, (32, 8), generator=draw, dtype=torch.int32)
    lattice = Lattice.from_codes(codes, torch.tensor([0.01]), 64, 2)
    sides = [Format(bits, "uniform", 16).pack(torch.randn(rank, size, generator=draw), None) for size in (32, 64)]
    signs = [torch.randint(0, 2, (size,), generator=draw) * 2.0 - 1 for size in (64, 32)]
    return Rotated.of(Sum((lattice, LowRank(*sides))), Hadamard(signs[0], 64), Hadamard(signs[1], 32))


@pytest.mark.parametrize("rank", [1, 4, 6, 9])
def test_split_ranks_keep_the_values(rank: int) -> None:
    whole = weight()
    split = split_ranks(whole, rank)
    assert dense_factors(whole.description()) == []
    factors = [split.tensors()[name] for name in dense_factors(split.description())]
    assert [tuple(each.shape) for each in factors] == [(min(rank, 6), 32), (min(rank, 6), 64)]
    error = (split.dequantize() - whole.dequantize()).norm() / whole.dequantize().norm()
    assert error < 1e-3, "16 bits lose less than a thousandth"
    read = from_tensors(split.description(), split.tensors())
    assert torch.equal(read.dequantize(), split.dequantize())
    assert split.nbytes > whole.nbytes


def test_dense_factors_are_not_split() -> None:
    whole = weight(bits=16)
    assert len(dense_factors(whole.description())) == 2
    assert split_ranks(whole, 2).description() == whole.description()


def test_only_whole_pairs_are_leading_ranks() -> None:
    """Of a term with one dense factor the rest keeps it: dense, but none of the leading ranks."""
    dense, rounded = Format(16, "uniform", 16), Format(4, "uniform", 16)
    term = LowRank(dense.pack(torch.randn(6, 32), None), rounded.pack(torch.randn(6, 64), None))
    assert dense_factors(term.description()) == ["left_values"] and not dense_factors(term.description(), pairs=True)
    split = split_ranks(term, 2).description()
    assert dense_factors(split, pairs=True) == ["terms_0_left_values", "terms_0_right_values"]
    assert "terms_1_left_values" in dense_factors(split)


def test_a_thawed_weight_multiplies_alike_and_passes_gradients_to_what_is_free() -> None:
    split = split_ranks(weight(), 4)
    free = dense_factors(split.description())
    description, tensors = thaw(split.description(), split.tensors(), set(free))
    tensors |= {name: tensors[name].float().requires_grad_() for name in free}
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    y = from_tensors(description, tensors).matmul(x)
    torch.testing.assert_close(y, split.matmul(x), rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == set(free)
    assert all(bool(tensors[name].grad.abs().sum() > 0) for name in free)
