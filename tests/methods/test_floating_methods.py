"""Methods on floating grids: planned storage, exact zeros, the walk's gain, what a grid settles and what contradicts it."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.registry import method_from
from featherweight.methods.round_input import RoundInput
from featherweight.packed.rounded_input import RoundedInput
from problems import make, relative_error, run

GRIDS = pytest.mark.parametrize("grid", ["fp8", "fp4", "nvfp4", "mxfp4"])
BITS = {"fp8": 8 + 16 / 128, "fp4": 4.5, "nvfp4": 4.5, "mxfp4": 4.25}


def problem():
    return make(((32, 128), (16, 128)))


@GRIDS
@pytest.mark.parametrize("order", ["none", "static", "dynamic"])
def test_the_walk_beats_rounding(grid, order):
    current, facts = run(problem(), method_from("gptq", {"grid": grid, "order": order}))
    rounded, _ = run(problem(), method_from("rtn", {"grid": grid, "fit": "weighted"}))
    assert relative_error(problem(), current) < 0.5 * relative_error(problem(), rounded)
    assert {fact["solver"] for fact in facts.values()} == {"sweep"}
    bits = 8 * sum(each.nbytes for each in rounded.values()) / (48 * 128)
    assert bits == pytest.approx(BITS[grid] + (8 * 2 * 4 / (48 * 128) if grid == "nvfp4" else 0))


@GRIDS
@pytest.mark.parametrize("order", ["none", "static", "dynamic"])
def test_zeros_stay_and_repair_helps(grid, order):
    chain = [method_from("magnitude", {"ratio": 0.5}), method_from("gptq", {"grid": grid, "order": order})]
    current, _ = run(problem(), *chain)  # `run` looks at each zero
    repaired, facts = run(problem(), *chain, method_from("repair", {}))
    assert relative_error(problem(), repaired) < relative_error(problem(), current)
    assert {fact["solver"] for fact in facts.values()} == {"repair"}


@GRIDS
@pytest.mark.parametrize("pattern", ["block", "2:4"])
def test_pruning_and_rounding_in_one_walk(grid, pattern):
    joint, _ = run(problem(), method_from("sparsegpt", {"grid": grid, "pattern": pattern}))
    pruned, _ = run(problem(), method_from("sparsegpt", {"pattern": pattern}))
    for weight in joint.values():
        assert weight.described["values"]["kind"] == "floating" and (weight.dequantize() == 0).float().mean() >= 0.5
    loss = {"fp8": 1.05, "fp4": 1.3, "nvfp4": 1.3, "mxfp4": 1.5}[grid]
    assert relative_error(problem(), joint) < loss * relative_error(problem(), pruned)


@GRIDS
def test_inputs_can_be_dropped_after_rounding(grid):
    current, _ = run(problem(), method_from("rtn", {"grid": grid}), method_from("structured", {"ratio": 0.25}))
    assert {weight.inner.shape[1] for weight in current.values()} == {96}


def test_a_grid_settles_what_is_left_out():
    nvfp4 = method_from("gptq", {"grid": "nvfp4"})
    assert (nvfp4.bits, nvfp4.group_size, nvfp4.symmetric, nvfp4.scale_dtype) == (4, 16, True, "float8_e4m3fn")
    mx = method_from("rtn", {"grid": "fp8", "group_size": 32, "scale_dtype": "float8_e8m0fnu"})
    assert (mx.bits, mx.group_size, mx.scale_dtype) == (8, 32, "float8_e8m0fnu")
    assert method_from("rtn", {"grid": "mxfp4"}).group_size == 32
    assert method_from("sparsegpt", {"grid": "fp8"}).bits == 8 and method_from("sparsegpt", {}).bits is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": "nvfp4", "group_size": 32}, "use grid: fp4"),
        ({"grid": "mxfp4", "scale_dtype": "float16"}, "use grid: fp4"),
        ({"grid": "fp8", "bits": 4}, "expected: bits: 8"),
        ({"grid": "fp4", "symmetric": False}, "expected: symmetric: true"),
        ({"scale_dtype": "float8_e4m3fn"}, "grid: nvfp4"),
        ({"grid": "fp6"}, "nvfp4"),
    ],
)
def test_what_contradicts_a_grid(settings, says):
    for name in ("rtn", "gptq"):
        with pytest.raises(FeatherweightError, match=says):
            method_from(name, settings)


def test_inputs_rounded_to_fp8():
    current, _ = run(problem(), method_from("rtn", {"grid": "fp8"}), method_from("round-input", {"grid": "fp8"}))
    weight = current["linear0"]
    assert isinstance(weight, RoundedInput) and weight.grid == "fp8" and not weight.is_linear
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(2))
    x[0, 0] = 0
    scale = x.abs().amax(-1, keepdim=True) / 448
    expected = (x / scale.clamp(min=1e-30)).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(weight.as_read(x), expected)
    assert torch.equal(weight.matmul(x), torch.nn.functional.linear(expected, weight.dequantize()))
    with pytest.raises(FeatherweightError, match="fp8 of 8 bits"):
        RoundInput(bits=4, grid="fp8")
