"""Attention over codes by the CUDA kernels, emulated on the host, against the reference over the same codes."""

from functools import partial

import pytest
import torch
from emulation import launch, needs_compiler

from featherweight.errors import FeatherweightError
from featherweight.kernels.cache_part import CachePart
from featherweight.kernels.cuda.cache_layout import unsupported
from featherweight.kernels.reference.cache_attention import cache_attention as reference
from featherweight.kv_cache import CompressedCache, attach_cache, make_codec
from featherweight.kv_cache.part import StoredPart
from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.registry import codec_settings

pytestmark = needs_compiler

QJL = {"codec": "qjl", "group_size": 32, "window": 128}
KEYS = {
    "qjl": {**QJL, "sketch": 256, "outliers": 0},
    "qjl-outliers": {**QJL, "sketch": 256, "outlier_sketch": 256},
    "qjl-first-layers": {**QJL, "sketch": 512, "outlier_sketch": 128},
    "qjl-short": {**QJL, "sketch": 128, "outlier_sketch": 128},
    "kivi-2": {"codec": "integer", "bits": 2, "axis": "channel"},
    "kivi-4": {"codec": "integer", "bits": 4, "axis": "channel"},
    "int8": {"codec": "integer", "bits": 8, "axis": "token", "group_size": 64},
    "rotated-3": {"codec": "rotated", "bits": 3, "group_size": 128},
    "rotated-4": {"codec": "rotated", "bits": 4, "group_size": None},
}
VALUES = {
    "integer-2": {"codec": "integer", "bits": 2},
    "integer-4": {"codec": "integer", "bits": 4},
    "integer-8": {"codec": "integer", "bits": 8, "group_size": 64},
    "rotated-3": {"codec": "rotated", "bits": 3},
    "rotated-4": {"codec": "rotated", "bits": 4},
}


def parts(keys, values, tokens, batch=1, heads=2, head_dim=128, dtype=torch.bfloat16, first=0, seed=0):
    """Keys and values as a cache holds them, with some structure: channels of their own means, tokens of their own size."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for settings in (keys, values):
        codec = make_codec(settings)
        states = torch.randn(batch, heads, tokens, head_dim, generator=generator)
        states += (
            3 * torch.randn(1, heads, 1, head_dim, generator=generator) * (torch.rand(head_dim, generator=generator) < 0.1)
        )
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
    exact = [in_float32(part) for part in told]
    expected = reference(query.float(), *exact, mask, head_dim**-0.5)
    assert found.shape == expected.shape and found.dtype == dtype
    return float((found.float() - expected).norm() / expected.norm())


def in_float32(part):
    """The same codes, with what is exact in float32, so that the reference rounds nothing."""
    product = part.product
    if "first" in part.codes:
        codes = {**part.codes, "first": part.codes["first"].float()}
        product = partial(product.func, codes=codes, constants=part.constants)
    return CachePart(**{**part.__dict__, "exact": part.exact.float(), "product": product})


@pytest.mark.parametrize(
    ("keys", "values"), [*((name, "integer-2") for name in KEYS), *(("kivi-2", name) for name in VALUES if name != "integer-2")]
)
def test_every_codec_is_read(keys, values):
    assert compare(KEYS[keys], VALUES[values], 300) < 0.008


def test_query_heads_in_blocks_and_several_sequences():
    for group, batch in ((1, 3), (2, 1), (7, 2)):
        assert compare(KEYS["qjl"], VALUES["integer-2"], 290, group=group, batch=batch) < 0.004


@pytest.mark.parametrize(
    ("keys", "values"), [("kivi-4", "integer-4"), ("qjl-outliers", "integer-2"), ("rotated-3", "rotated-4")]
)
def test_float16(keys, values):
    assert compare(KEYS[keys], VALUES[values], 300, dtype=torch.float16) < 0.006


def test_heads_of_64():
    assert compare(KEYS["qjl"], VALUES["integer-4"], 300, head_dim=64) < 0.004


@pytest.mark.parametrize(("keys", "values"), [("kivi-2", "integer-2"), ("rotated-3", "rotated-3")])
@pytest.mark.parametrize("tokens", [131, 256])
def test_first_tokens_are_read_exactly(keys, values, tokens):
    assert compare(KEYS[keys], VALUES[values], tokens, first=4) < 0.006


def test_hidden_tokens_have_no_weight():
    mask = torch.ones(2, 1, 1, 300, dtype=torch.bool)
    mask[0, ..., :70] = mask[1, ..., 250:] = False
    assert compare(KEYS["rotated-4"], VALUES["integer-4"], 300, batch=2, mask=mask) < 0.006


def test_nothing_in_code_all_in_code_and_lengths_on_the_device():
    """A graph is recorded for one shape of the work and replayed while the lengths grow: they count, not the parts' own."""
    from featherweight.kernels.cuda.cache_attention import Lengths, Shape, attend

    every = {"codec": "integer", "bits": 8, "group_size": 64, "window": 0}
    assert compare({**KEYS["qjl"], "window": 32}, {"codec": "integer", "window": 32}, 31) < 0.004
    assert compare({**KEYS["int8"], "window": 0}, every, 77) < 0.004
    keys, values = parts({**KEYS["kivi-2"], "window": 32}, {**every, "window": 32}, 225)
    query = torch.randn(1, 8, 1, 128, generator=torch.Generator().manual_seed(7)).bfloat16()
    shorter = [CachePart(**{**part.__dict__, "coded": 0}) for part in (keys, values)]
    lengths = Lengths(torch.tensor([keys.coded, values.coded, 225], dtype=torch.int32), most=1000)
    found = attend(query, *shorter, None, 128**-0.5, lengths, Shape(warps=4), launch)
    expected = attend(query, keys, values, None, 128**-0.5, None, Shape(warps=4), launch)
    assert (found - expected).norm() < 0.004 * expected.norm()


@pytest.mark.parametrize("name", ["int8", "kivi-2", "kivi-4", "qjl", "rotated-3", "rotated-4"])
def test_presets_are_supported_and_others_say_why(name):
    for layer in (0, 20):
        keys, values = map(codec_settings, read_settings(name, 128).codecs(layer))
        assert not unsupported(keys, values, 128)


def test_rotated_2_and_slower_values_are_left_to_the_reference():
    keys, values = map(codec_settings, read_settings("rotated-2", 128).codecs(0))
    assert "3 or 4 bits" in unsupported(keys, values, 128)
    keys, values = map(codec_settings, read_settings("kivi-2", 128).codecs(0))
    assert "window" in unsupported(keys, {**values, "window": 64}, 128)


def test_what_does_not_compile_is_left_to_the_reference_and_says_so(monkeypatch):
    from featherweight.kernels.cuda import cache_attention as module

    def refuse(*_, **__):
        raise FeatherweightError("a kernel does not compile", found="nonsense")

    told = parts(KEYS["kivi-2"], {**VALUES["integer-2"], "window": 160}, 300)
    query = torch.randn(1, 8, 1, 128, generator=torch.Generator().manual_seed(7)).bfloat16()
    monkeypatch.setattr(module, "attend", refuse)
    assert torch.equal(module.cache_attention(query, *told, None, 0.1), reference(query, *told, None, 0.1))
    assert "does not compile" in unsupported(told[0].settings, told[1].settings, 128)


def test_through_the_cache_of_a_model(monkeypatch):
    """Tokens one by one through transformers: the kernel's logits against the reference's."""
    signatures = []

    def choose(op, signature, device):
        signatures.append(signature)
        return partial(attend_on_the_host, op, signature)

    model = tiny_model()
    ids = torch.randint(3, 97, (2, 150), generator=torch.Generator().manual_seed(1))
    padding = torch.ones_like(ids)
    padding[1, :9] = 0
    for settings in ("rotated-3",):
        attach_cache(model, read_settings(settings, 128))
        logits = []
        for patched in (False, True):
            with monkeypatch.context() as context, torch.no_grad():
                if patched:
                    context.setattr("featherweight.kv_cache.cache.choose", choose)
                cache = CompressedCache.from_model(model)
                model(ids[:, :147], attention_mask=padding[:, :147], past_key_values=cache)
                for at in range(147, 150):
                    output = model(ids[:, at : at + 1], attention_mask=padding[:, : at + 1], past_key_values=cache)
                logits.append(output.logits.float())
        assert cache.reads[0].coded_keys and cache.reads[0].coded_values
        assert (logits[0] - logits[1]).norm() < 0.02 * logits[0].norm()
    assert all(signature["queries"] == 1 for signature in signatures) and len(signatures) == 3


def attend_on_the_host(op, signature, query, keys, values, mask, scaling):
    from featherweight.kernels.cuda.cache_attention import Shape, attend, readable

    assert op == "cache_attention" and not unsupported(signature["keys"], signature["values"], signature["head_dim"])
    assert readable(query, keys, values, mask)
    return attend(query, keys, values, mask, scaling, shape=Shape(warps=4), launch=launch)


def tiny_model():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=97, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
        intermediate_size=96, max_position_embeddings=256,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
