"""Rounded inputs: integers as by hand, exact integer products, the same values by every path."""

from dataclasses import replace

import pytest
import torch

import featherweight as fw
from common import TINY
from featherweight.errors import FeatherweightError
from featherweight.kernels.reference.int8_matmul import int8_matmul, torch_int8_matmul
from featherweight.methods.inside import compress_inside
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.round_input import RoundInput
from featherweight.methods.rtn import RTN
from featherweight.methods.structured import Structured
from featherweight.packed.base import from_tensors
from featherweight.packed.linear import PackedLinear
from featherweight.packed.rounded_input import RoundedInput, round_tokens
from problems import make, run

CHAINS = [
    [RTN(bits=8, group_size=None, symmetric=True)],
    [RTN(bits=8, group_size=16)],
    [RTN(bits=4, group_size=16)],
    [Magnitude(pattern="2:4")],
    [Magnitude(), RTN(bits=8, group_size=None, symmetric=True)],
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_rounded_by_their_own_largest_value():
    codes, scale = round_tokens(torch.tensor([[127.0, -1.6, 0.4], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.0]]), 8)
    assert codes.tolist() == [[127, -2, 0], [0, 0, 0], [-127, 64, 0]]
    assert scale.flatten().tolist() == pytest.approx([1.0, 0.0, 2 / 127])


@pytest.mark.parametrize("inputs", [8, 1024, 3000])
def test_integer_products_are_exact(inputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, inputs), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, (16, inputs), generator=generator, dtype=torch.int8)
    exact = x.long() @ weight.long().T
    assert torch.equal(int8_matmul(x, weight), exact) and torch.equal(torch_int8_matmul(x, weight).long(), exact)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_path_multiplies_the_rounded_input(chain, bits):
    problem = make(((24, 80),), torch.float32)
    plain, rounded = run(problem, *chain)[0]["linear0"], run(problem, *chain, RoundInput(bits=bits))[0]["linear0"]
    assert rounded.nbytes == plain.nbytes and torch.equal(rounded.dequantize(), plain.dequantize())
    x = draw(2, 7, 80)
    expected = rounded.as_read(x).double() @ plain.dequantize().double().T
    again = from_tensors(rounded.description(), rounded.tensors())
    linear = PackedLinear(rounded, dtype=torch.float32)
    torch.testing.assert_close(again.matmul(x).double(), expected, rtol=1e-5, atol=1e-5)
    linear.cache_dense()
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected.float(), plain.matmul(x), rtol=1e-5, atol=1e-6)


def test_beneath_a_sliced_weight_the_input_is_rounded_too():
    problem = make(((24, 80),), torch.float32)
    chain = [Structured(ratio=0.25), RTN(bits=8, group_size=None, symmetric=True)]
    plain = run(problem, *chain[:1])[0]["linear0"]
    inner = RoundedInput(run_inside(problem, chain)["linear0"].inner)
    x = draw(3, 80)
    linear = PackedLinear(replace(plain, inner=inner), dtype=torch.float32)
    linear.cache_dense()
    assert torch.equal(linear(x), replace(plain, inner=inner).matmul(x))


def run_inside(problem, chain):
    """What each linear is stored as after a chain that goes on inside sliced weights."""
    for method in chain:
        problem = replace(problem, current={name: each.weight for name, each in compress_inside(method, problem).items()})
    return problem.current


def test_w8a8_through_the_engine_loses_little(tmp_path):
    result = fw.compress(fw.plan("demo", "w8a8", changes=TINY), tmp_path / "out")
    found = {each.name: each.value for each in fw.evaluate(result.folder, against="demo", windows=2, length=256)}
    assert result.proof["identical"] and 0 < found["kl"] < 0.02


def test_errors():
    with pytest.raises(FeatherweightError, match="use bits: 8"):
        RoundInput(bits=9)
    with pytest.raises(FeatherweightError, match="put rtn before it"):
        fw.plan("demo", {"steps": [{"method": "round-input"}, {"method": "rtn"}]})
