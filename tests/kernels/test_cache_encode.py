"""Coding tokens by the CUDA kernels, emulated on the host, against the codecs' own torch operations."""

import pytest
import torch
from emulation import launch, needs_compiler

from featherweight.kernels.cuda.cache_encode import integer_encode, qjl_encode, unsupported
from featherweight.kernels.reference.qjl import qjl_encode as reference_sketch
from featherweight.kv_cache import make_codec

pytestmark = needs_compiler


def states(tokens, dtype=torch.bfloat16, batch=2, heads=2, seed=0):
    """A view as the cache hands over: tokens in the middle of a buffer; some channels larger than others."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, heads, tokens + 24, 128, generator=generator)
    values += 3 * torch.randn(1, heads, 1, 128, generator=generator) * (torch.rand(128, generator=generator) < 0.1)
    return values.to(dtype)[:, :, 8 : tokens + 8]


@pytest.mark.parametrize(("bits", "axis", "group"), [
    (2, "token", 32), (4, "token", 64), (8, "token", 64), (8, "token", 128), (2, "channel", 32), (4, "channel", 64),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_are_those_of_the_codec_bit_for_bit(bits, axis, group, dtype):
    exact = states(64 if axis == "channel" else 37, dtype)
    exact[0, 0, :, 32:64] = 0.5  # a group of equal values
    codec = make_codec({"codec": "integer", "bits": bits, "axis": axis, "group_size": group, "window": 128})
    expected, found = codec.encode(exact, {}), integer_encode(exact, bits, axis, group, launch)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("sketch", "outliers", "apart"), [(256, 8, 256), (512, 8, 128), (128, 0, 128)])
def test_sketches_are_those_of_the_reference(sketch, outliers, apart):
    exact = states(64)
    codec = make_codec({"codec": "qjl", "sketch": sketch, "outliers": outliers, "outlier_sketch": apart})
    projection = codec.constants(128, torch.Generator().manual_seed(3))["projection"]
    arguments = (exact, projection, outliers, apart, 32)
    expected, found = reference_sketch(*arguments), qjl_encode(*arguments, launch)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        if "signs" in name:  # those of a sum that is all but 0 depend on its order
            assert (found[name] != tensor).float().mean() < 1e-4, name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=0.01, atol=0)


@pytest.mark.parametrize(("sketch", "outliers", "apart"), [(256, 8, 256), (512, 8, 128), (128, 0, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_keys_go_through_the_matrix_unit(sketch, outliers, apart, dtype, monkeypatch):
    """In tiles of 128, the last one not whole, more tiles than blocks."""
    from featherweight.kernels.cuda import cache_encode

    monkeypatch.setattr(cache_encode, "MANY", 1)
    exact = states(160, dtype, batch=1)
    codec = make_codec({"codec": "qjl", "sketch": sketch, "outliers": outliers, "outlier_sketch": apart})
    projection = codec.constants(128, torch.Generator().manual_seed(3))["projection"]
    arguments = (exact, projection, outliers, apart, 32)
    expected, found = reference_sketch(*arguments), qjl_encode(*arguments, launch)
    for name, tensor in expected.items():
        if "signs" in name:
            bits = (found[name] ^ tensor).unsqueeze(-1) >> torch.arange(8) & 1
            assert bits.float().mean() < 1e-4, name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=0.01, atol=0)


def test_what_is_not_served_is_said():
    served = {"bits": 2, "axis": "token", "group_size": 32}
    assert not unsupported(128, "bfloat16", served)
    assert "heads of 128" in unsupported(64, "bfloat16", served) and "16 bits" in unsupported(128, "float32", served)
    assert "groups of 32" in unsupported(128, "float16", served | {"group_size": 16})
    sketch = {"sketch": 256, "outliers": 8, "outlier_sketch": 256, "group_size": 32}
    assert not unsupported(128, "bfloat16", sketch) and "8 outliers" in unsupported(128, "bfloat16", sketch | {"outliers": 4})


def test_what_does_not_compile_is_left_to_the_reference_and_says_so(monkeypatch):
    from featherweight.errors import FeatherweightError
    from featherweight.kernels.cuda import cache_encode

    def refuse(*_, **__):
        raise FeatherweightError("a kernel does not compile", found="nonsense")

    monkeypatch.setattr(cache_encode, "_FAILED", {})
    exact, served = states(8), {"bits": 2, "axis": "token", "group_size": 32}
    expected = make_codec({"codec": "integer", "bits": 2}).encode(exact, {})
    assert torch.equal(integer_encode(exact, 2, "token", 32, refuse)["codes"], expected["codes"])
    assert "does not compile" in unsupported(128, "bfloat16", served)
