"""Repair: never a larger error, the same bytes and zeros; after every kind of step before it."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.alps import ALPS
from featherweight.methods.gptq import GPTQ
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.repair import Repair
from featherweight.methods.rtn import RTN
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.methods.wanda import Wanda
from problems import make, relative_error, run

CHAINS = [
    [RTN(bits=4, group_size=16)],
    [GPTQ(bits=3, group_size=16, order="dynamic", symmetric=True)],
    [Magnitude()],
    [Wanda(pattern="2:4")],
    [ALPS()],
    [Wanda(), RTN(bits=3, group_size=None)],
    [RTN(bits=4, group_size=16), Magnitude(pattern="2:4")],
    [GPTQ(bits=4, group_size=16), Wanda()],
    [SparseGPT(bits=4, group_size=16)],
    [Magnitude(ratio=0.05), GPTQ(bits=2, group_size=16)],
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chain", CHAINS)
def test_the_error_never_rises_and_everything_else_stays(chain, dtype):
    problem = make(dtype=dtype)
    before, _ = run(problem, *chain)
    after, facts = run(problem, *chain, Repair())
    for name, weight in after.items():
        assert weight.description() == before[name].description()
        if before[name].support is not None and before[name].description()["mask"] != "implied":
            assert torch.equal(weight.support, before[name].support)
        if facts[name]["solver"] == "as before":
            assert torch.equal(weight.dequantize(), before[name].dequantize())
        assert facts[name]["relative_error"] <= facts[name]["error_before_repair"]
    assert relative_error(problem, after) <= relative_error(problem, before) * (1 + 1e-5)


@pytest.mark.parametrize("rounding", [GPTQ(bits=4, group_size=16), RTN(bits=3, group_size=24, symmetric=True)])
def test_a_walk_on_the_grid_that_is_there(rounding):
    problem = make(((32, 128), (16, 128)))
    before, _ = run(problem, rounding, Wanda())
    after, _ = run(problem, rounding, Wanda(), Repair(keep_grid=True))
    for name, weight in after.items():
        assert torch.equal(weight.values.scales, before[name].values.scales) and torch.equal(
            weight.support, before[name].support
        )
        assert weight.values.symmetric or torch.equal(weight.values.zeros, before[name].values.zeros)
    assert relative_error(problem, after) < 0.7 * relative_error(problem, before)
    with pytest.raises(FeatherweightError, match="no grid to keep"):
        run(problem, Wanda(), Repair(keep_grid=True))


def test_a_drop_after_rounding_is_made_up_for():
    problem = make(((32, 128), (16, 128)))
    chain = [GPTQ(bits=4, group_size=32), Wanda()]
    assert relative_error(problem, run(problem, *chain, Repair())[0]) < 0.5 * relative_error(problem, run(problem, *chain)[0])


def test_errors():
    with pytest.raises(FeatherweightError, match="leave them out"):
        Repair(refit=0)
    described = SpQR().storage(make(((24, 128),)).current["linear0"].description(), torch.bfloat16)
    with pytest.raises(FeatherweightError, match="put repair after"):
        Repair().storage(described, torch.bfloat16)
