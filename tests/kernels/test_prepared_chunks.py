"""Packed weights in chunks: made by the methods, multiplied by the kernels' source on a CPU, and back bit for bit."""

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.kernels.cuda import stream
from featherweight.methods.registry import method_from
from featherweight.packed.chunked import prepare_bitmap, prepare_bitmap_codes, prepare_two_level, prepare_two_of_four
from problems import make, run

#: What a method makes, and who prepares it.
MADE = {
    "spqr": ({"method": "spqr", "outlier_share": 0.02}, prepare_two_level),
    "spqr, narrow": (
        {"method": "spqr", "bits": 2, "scale_bits": 4, "outlier_bits": 8, "order": "identity", "outlier_share": 0.05},
        prepare_two_level,
    ),
    "spqr, dense": ({"method": "spqr", "bits": 4, "second_group_size": 64, "outlier_threshold": None}, prepare_two_level),
    "spqr, whole zeros": ({"method": "spqr", "round_zero": True, "outlier_share": 0.001}, prepare_two_level),
    "spqr, symmetric": ({"method": "spqr", "symmetric": True, "group_size": 32, "outlier_share": 0.01}, prepare_two_level),
    "2:4": ({"method": "magnitude", "pattern": "2:4"}, prepare_two_of_four),
    "2:4, codes": ({"method": "sparsegpt", "pattern": "2:4", "bits": 4, "group_size": 32}, prepare_two_of_four),
    "unstructured": ({"method": "magnitude", "ratio": 0.6}, prepare_bitmap),
    "rows": ({"method": "wanda", "pattern": "row"}, prepare_bitmap),
    "unstructured, codes": ({"method": "sparsegpt", "ratio": 0.5, "bits": 4, "group_size": 32}, prepare_bitmap_codes),
    "4:8, codes": (
        {"method": "sparsegpt", "pattern": "4:8", "bits": 4, "symmetric": True, "group_size": None},
        prepare_bitmap_codes,
    ),
    "2:4, rows": ({"method": "sparsegpt", "pattern": "2:4", "bits": 4, "group_size": None}, prepare_two_of_four),
}


@pytest.fixture
def prepared(emulation, monkeypatch):  # noqa: F811
    """Small cuts, on a CPU."""
    cuts = ((2, 1, 2, 1),)
    monkeypatch.setattr(
        stream,
        "default_shape",
        lambda weight, tokens: stream.shape_of(*weight.cut, tokens, weight.segment, 2, 200_000, cuts=cuts),
    )


@needs_compiler
@pytest.mark.parametrize("name", MADE)
def test_what_methods_store_is_multiplied_and_comes_back(name, prepared):
    step, prepare = MADE[name]
    problem = make(((40, 136),))
    weight = run(problem, method_from(step["method"], {name: value for name, value in step.items() if name != "method"}))[0][
        "linear0"
    ]
    ready = prepare(weight)
    x = torch.randn(2, 3, 136, generator=torch.Generator().manual_seed(3)).bfloat16()
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert ready.runs(x) and not ready.runs(x.float())
    assert (ready(x).double() - expected).norm() <= 4e-3 * expected.norm()
    x = torch.randn(130, 136, generator=torch.Generator().manual_seed(4)).bfloat16()  # by dense values
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert (ready(x).double() - expected).norm() <= 4e-3 * expected.norm()
    stored = ready.stored()
    assert list(stored) == list(weight.tensors())
    assert all(
        torch.equal(stored[each], tensor) and stored[each].dtype == tensor.dtype for each, tensor in weight.tensors().items()
    )
