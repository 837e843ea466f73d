"""Weights that run through the kernel of what is inside them: products, and the stored tensors back bit for bit."""

import pytest
import torch

from featherweight.kernels import registry, supports
from featherweight.methods.registry import method_from
from featherweight.packed import around
from featherweight.packed.base import empty
from featherweight.packed.integer import Integer
from featherweight.packed.lower import explain
from featherweight.packed.masked import Masked
from featherweight.packed.sliced import Sliced
from problems import make, run


class Whole:
    """Stands for a kernel: holds a packed weight and multiplies by its values."""

    def __init__(self, weight):
        self.weight = weight

    def runs(self, x):
        return x.dtype == torch.bfloat16

    def stored(self):
        return self.weight.tensors()

    def tensors(self):
        return self.weight.tensors()

    def __call__(self, x, bias=None):
        return torch.nn.functional.linear(x, self.weight.dequantize(x.dtype), bias)


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(around, "prepare", lambda weight, dtype: Whole(weight))


def check(prepared, weight, bias):
    x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.nn.functional.linear(x, weight.dequantize(torch.bfloat16), bias)
    torch.testing.assert_close(prepared(x, bias), expected, rtol=2e-2, atol=1e-2)
    assert prepared.runs(x) and not prepared.runs(x.float())
    stored = prepared.stored()
    assert stored.keys() == weight.tensors().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in weight.tensors().items())


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("biased", [True, False])
def test_sliced_gathers_and_scatters(kernels, sides, biased):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (12, 40), generator=generator, dtype=torch.uint8)
    inner = Integer.from_codes(codes, torch.rand(12, 1, generator=generator).half(), None, 4, None)
    inputs = torch.randperm(64, generator=generator)[:40].sort().values if sides[0] else None
    outputs = torch.randperm(20, generator=generator)[:12].sort().values if sides[1] else None
    weight = Sliced.of(inner, (20 if sides[1] else 12, 64 if sides[0] else 40), inputs, outputs)
    bias = torch.randn(weight.shape[0], generator=generator).bfloat16() if biased else None
    check(around.prepare_sliced(weight), weight, bias)


@pytest.mark.parametrize("pattern", ["block", "row", "4:8"])
def test_codes_under_a_mask(kernels, pattern):
    problem = make(((16, 64),))
    weight = run(problem, method_from("sparsegpt", {"pattern": pattern, "bits": 4, "group_size": 32}))[0]["linear0"]
    assert isinstance(weight, Masked)
    check(around.prepare_masked_codes(weight), weight, None)


def test_explain_says_which_kernel_runs_inside(monkeypatch):
    inner = Integer.describe((32, 64), 4, 32, symmetric=True, scale_dtype=torch.float16)
    described = Sliced.describe((48, 64), Masked.describe(inner, 32 * 32, "row"))
    reasons = {name: (runs, reason) for name, runs, reason in explain(empty(described), "cpu")}
    assert reasons["sliced"] == (False, "written for CUDA, not for cpu: composed of what it holds")
    always = registry.Kernel("fast", "nowhere", "nothing", lambda signature, device: (signature["kind"] == "integer", ""), True)
    offered = (always, *registry.OPS["dequantize_matmul"])
    monkeypatch.setitem(registry.OPS, "dequantize_matmul", offered)
    reasons = {name: (runs, reason) for name, runs, reason in explain(empty(described), "cuda")}
    assert reasons["sliced"] == (True, "kept inputs gathered once: masked codes")


def test_codes_under_a_mask_are_compacted_where_room_is_scarce(monkeypatch):
    inner = Integer.describe((4096, 4096), 4, 128, symmetric=True, scale_dtype=torch.float16)
    described = Masked.describe(inner, 4096 * 2048, "row")
    reads = {"integer": "integer", "masked": "bitmap_codes"}
    monkeypatch.setattr(supports, "on_hopper", lambda storage, signature, device: (storage == reads[signature["kind"]], "runs"))
    for free, expected in ((80, "masked codes"), (20, "cuda, bitmap codes")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 100))
        offered = registry.explain("dequantize_matmul", described, "cuda")
        assert next(name for name, runs, _ in offered if runs) == expected
        assert "3.21 bits a weight" in {name: reason for name, _, reason in offered}["cuda, bitmap codes"]
