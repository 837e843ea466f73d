"""Rotated weights: the same products and values as by matrices, bytes as described, cuts, steps inside."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.models.transforms import Diagonal, Hadamard, Permutation
from featherweight.packed.base import described_bytes, empty, from_tensors
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedLinear
from featherweight.packed.maps import as_stored, describe_map, description_of
from featherweight.packed.rotated import Rotated
from featherweight.statistics.inputs import KINDS, InputStatistics
from problems import make

ROWS, COLUMNS = 24, 80


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transform(kind, size, seed=1):
    if kind == "diagonal":
        return as_stored(Diagonal(draw(size, seed=seed).exp()), torch.bfloat16)
    if kind == "permutation":
        return Permutation(torch.randperm(size, generator=torch.Generator().manual_seed(seed)))
    return Hadamard(draw(size, seed=seed).sign(), size, inverted=kind == "inverse")


KINDS_OF_MAPS = [None, "diagonal", "permutation", "hadamard", "inverse"]


def rotated(before, after, inner=None):
    maps = [None if kind is None else transform(kind, size) for kind, size in ((before, COLUMNS), (after, ROWS))]
    return Rotated.of(Dense(draw(ROWS, COLUMNS)) if inner is None else inner, *maps, dtype=torch.bfloat16)


@pytest.mark.parametrize("after", KINDS_OF_MAPS)
@pytest.mark.parametrize("before", KINDS_OF_MAPS)
def test_it_is_what_its_matrices_make(before, after):
    weight = rotated(before, after)
    again = from_tensors(weight.description(), weight.tensors())
    left = torch.eye(ROWS).double() if after is None else transform(after, ROWS).matrix()
    right = torch.eye(COLUMNS).double() if before is None else transform(before, COLUMNS).matrix()
    expected = left.inverse() @ draw(ROWS, COLUMNS).double() @ right
    torch.testing.assert_close(again.dequantize().double(), expected, rtol=1e-5, atol=1e-5)
    x = draw(2, 7, COLUMNS)
    torch.testing.assert_close(again.matmul(x).double(), x.double() @ expected.T, rtol=1e-5, atol=1e-4)
    assert weight.nbytes == described_bytes(weight.description()) == empty(weight.description()).nbytes
    sizes = {None: 0, "diagonal": 2, "permutation": 2, "hadamard": 1 / 8, "inverse": 1 / 8}
    assert weight.nbytes == ROWS * COLUMNS * 4 + COLUMNS * sizes[before] + ROWS * sizes[after]
    linear = PackedLinear(weight, dtype=torch.float32).to(torch.bfloat16)
    assert all(torch.equal(linear.packed.tensors()[name], tensor) for name, tensor in weight.tensors().items())


def test_more_columns_than_16_bits_tell():
    indices = torch.arange(2**16 + 8).flip(0)
    weight = Rotated.of(Dense(draw(1, len(indices))), Permutation(indices))
    assert weight.tensors()["input_indices"].dtype == torch.int32
    assert torch.equal(weight.dequantize(), draw(1, len(indices)).flip(1))
    short = Rotated.of(Dense(draw(1, 2**16)), Permutation(torch.arange(2**16).flip(0)))
    assert short.tensors()["input_indices"].dtype == torch.int16
    assert torch.equal(short.dequantize(), draw(1, 2**16).flip(1))


@pytest.mark.parametrize("kind", ["diagonal", "permutation", "hadamard"])
def test_planned_as_made(kind):
    made = description_of(transform(kind, COLUMNS), torch.bfloat16)
    assert made == describe_map("orthogonal" if kind == "hadamard" else kind, COLUMNS, torch.bfloat16)


def test_dropped_weights_move_along():
    problem = make(((ROWS, COLUMNS),), torch.float32)
    inner = Magnitude(pattern="2:4").compress(problem)["linear0"].weight
    for before, after in (("diagonal", None), ("permutation", "permutation"), ("diagonal", "diagonal")):
        weight = rotated(before, after, inner)
        assert torch.equal(weight.support, weight.dequantize() != 0)
    assert rotated("hadamard", None, inner).support is None


@pytest.mark.parametrize("kind", [None, "diagonal", "permutation"])
def test_cuts(kind):
    weight = rotated(kind, kind)
    outputs, inputs = torch.tensor([5, 0, 23]), torch.tensor([79, 3, 4, 40])
    part = weight.take(outputs, inputs)
    assert torch.equal(part.dequantize(), weight.dequantize()[outputs][:, inputs])
    assert torch.equal(weight.take(slice(0, 8)).dequantize(), weight.dequantize()[:8])


def test_what_a_hadamard_mixes_is_not_cut():
    assert rotated("hadamard", None).take(slice(0, 8)).shape == (8, COLUMNS)
    with pytest.raises(FeatherweightError, match="cannot be cut"):
        rotated("hadamard", None).take(None, slice(0, 8))


def test_a_map_of_another_size_is_refused():
    with pytest.raises(FeatherweightError, match="does not fit the inputs"):
        Rotated.of(Dense(draw(ROWS, COLUMNS)), Permutation(torch.arange(ROWS)))


@pytest.mark.parametrize("kind", ["diagonal", "permutation", "hadamard"])
def test_statistics_of_mapped_inputs(kind):
    x, map_ = draw(3, 70, COLUMNS), transform(kind, COLUMNS)
    found = InputStatistics.from_inputs(x, KINDS).transformed(map_)
    expected = InputStatistics.from_inputs(map_.apply(x), KINDS)
    assert (found.abs_max is None) == (kind == "hadamard") and found.count == expected.count
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["permutation", "hadamard"])
def test_steps_go_on_inside(kind):
    """A step between the maps equals the same step on the mapped problem, as planned."""
    problem, method = make(((ROWS, COLUMNS),), torch.float32), RTN(bits=4, group_size=16)
    before, after = transform(kind, COLUMNS), transform(kind, ROWS)
    reference = after.apply(before.contragredient().apply(problem.weights["linear0"]).t()).t()
    weight = Rotated.of(Dense(reference), before, after)
    torch.testing.assert_close(weight.dequantize(), problem.weights["linear0"])
    held = make(((ROWS, COLUMNS),), torch.float32)
    held.current["linear0"] = weight
    done = compress_inside(method, held)["linear0"].weight
    assert done.description() == storage_after(method, weight.description(), torch.float32)
    alone = make(((ROWS, COLUMNS),), torch.float32)
    alone.current["linear0"] = Dense(reference)
    assert torch.equal(done.inner.dequantize(), method.compress(alone)["linear0"].weight.dequantize())
