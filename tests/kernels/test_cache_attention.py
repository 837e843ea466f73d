"""Attention over codes by the CUDA kernels, emulated on the host, against the reference over the same codes."""

import pytest
import torch
from cuda_emulation import COMPILER, launch

from featherweight.kernels.reference.cache_attention import cache_attention as reference
from featherweight.kv_cache import make_codec
from featherweight.kv_cache.part import StoredPart

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

QJL = {"codec": "qjl", "group_size": 32, "window": 128}
KEYS = {
    "qjl": {**QJL, "sketch": 256, "outliers": 0},
    "qjl-outliers": {**QJL, "sketch": 256, "outlier_sketch": 256},
    "qjl-first-layers": {**QJL, "sketch": 512, "outlier_sketch": 128},
    "kivi-2": {"codec": "integer", "bits": 2, "axis": "channel"},
    "kivi-4": {"codec": "integer", "bits": 4, "axis": "channel"},
}
VALUES = {
    "integer-2": {"codec": "integer", "bits": 2},
    "integer-4": {"codec": "integer", "bits": 4},
    "integer-8": {"codec": "integer", "bits": 8, "group_size": 64},
}


def parts(keys, values, tokens, batch=1, heads=2, head_dim=128, dtype=torch.bfloat16, first=0, seed=0):
    """Keys and values as a cache holds them, with some structure: channels of their own means, tokens of their own size."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for settings in (keys, values):
        codec = make_codec(settings)
        states = torch.randn(batch, heads, tokens, head_dim, generator=generator)
        states += 3 * torch.randn(1, heads, 1, head_dim, generator=generator) * (torch.rand(head_dim, generator=generator) < 0.1)
        part = StoredPart(codec, codec.constants(head_dim, generator), states.to(dtype), first)
        part.append(states.to(dtype))
        part.settle()
        made.append(part)
    return made[0].told("scores"), made[1].told("mix")


def compare(keys, values, tokens, group=4, batch=1, dtype=torch.bfloat16, mask=None, first=0, head_dim=128, shape=None):
    """Relative error of the kernel, and of nothing but rounding to `dtype`, against the reference in float32 and float64."""
    from featherweight.kernels.cuda.cache_attention import Shape, attend

    told = parts(keys, values, tokens, batch, head_dim=head_dim, dtype=dtype, first=first)
    query = torch.randn(batch, 2 * group, 1, head_dim, generator=torch.Generator().manual_seed(7)).to(dtype)
    found = attend(query, *told, mask, head_dim**-0.5, shape=shape or Shape(warps=4, depth=3), launch=launch)
    exact = [type(part)(**{**part.__dict__, "exact": part.exact.float()}) for part in told]
    expected = reference(query.float(), *exact, mask, head_dim**-0.5)
    assert found.shape == expected.shape and found.dtype == dtype
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("keys", KEYS)
def test_every_pair_of_codecs_is_read(keys, values):
    assert compare(KEYS[keys], VALUES[values], 500) < 0.008
