"""Decode steps over a cache in code: against transformers' own step through the same codecs, and the CUDA kernels, emulated."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from featherweight.decoding import open_runner
from featherweight.decoding.coded_cache import CodedCache
from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference.coded_step import attend_coded as reference
from featherweight.kv_cache import CompressedCache, attach_cache
from featherweight.kv_cache.presets import read_settings

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
from emulation import launch, needs_compiler

CODECS = {
    "int8": "int8", "kivi-2": "kivi-2", "qjl": "qjl",
    "short": "keys=integer:bits=4,axis=channel,group_size=32,window=32;values=integer:bits=4,window=40",
}  # fmt: skip


def tiny_model(dtype=torch.float32, layers=2):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=97, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=128, intermediate_size=96, max_position_embeddings=512,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def eager(model, ids, count):
    """Greedy tokens through the model's own forward, and what the cache holds in the end."""
    cache, made = CompressedCache.from_model(model), []
    with torch.no_grad():
        for _ in range(count):
            made.append(model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True))
            ids = made[-1]
    return torch.cat(made, 1), cache


@pytest.mark.parametrize("name", CODECS)
def test_steps_are_those_through_transformers(name):
    model = attach_cache(tiny_model(), read_settings(CODECS[name], 128))
    ids = torch.randint(3, 97, (2, 117), generator=torch.Generator().manual_seed(1))
    expected, cache = eager(model, ids, 30)
    runner, reason = open_runner(model, ids, 150)
    assert runner is not None and not reason and runner.difference < 1e-5
    assert torch.equal(torch.tensor(list(runner.tokens(30))).T, expected)
    held = runner.compressed
    assert held.get_seq_length() == cache.get_seq_length() == 146 and held.coded_nbytes == cache.coded_nbytes > 0
    for mine, theirs in zip(held.layers, cache.layers, strict=True):
        for left, right in zip(mine.parts, theirs.parts, strict=True):
            torch.testing.assert_close(left.decoded(), right.decoded(), rtol=1e-4, atol=1e-4)


def test_a_conversation_goes_on_is_cut_and_grows():
    model = attach_cache(tiny_model(), read_settings(CODECS["short"], 128))
    ids = torch.randint(3, 97, (1, 70), generator=torch.Generator().manual_seed(2))
    more = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(3))
    runner, _ = open_runner(model, ids, 90)
    first = list(runner.tokens(10))
    expected, cache = eager(model, ids, 10)
    assert torch.equal(torch.tensor(first).T, expected)
    runner.grow(130)
    runner.read(more)
    with torch.no_grad():
        logits = model(more, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(runner.step.logits, logits, rtol=1e-3, atol=1e-4)
    runner.crop(0)
    runner.read(ids)
    assert list(runner.tokens(10)) == first


def test_codecs_that_no_step_serves_are_left_to_transformers():
    model = attach_cache(tiny_model(layers=1), read_settings("rotated-3", 128))
    runner, reason = open_runner(model, torch.full((1, 5), 7), 20)
    assert runner is None and "first tokens exact" in reason


@needs_compiler
@pytest.mark.parametrize("name", ["int8", "kivi-2", "qjl"])
def test_the_kernels_add_and_read_what_the_reference_does(name):
    """One layer, steps across the end of a window, in bfloat16."""
    from featherweight.kernels.cuda.cache_append import attend_coded
    from featherweight.kernels.cuda.cache_attention import Shape

    heads = Heads(2, 2, 128, 128**-0.5, torch.rand(128) + 0.5, torch.rand(128) + 0.5, 1e-6)
    model = attach_cache(tiny_model(torch.bfloat16, 1), read_settings(CODECS[name], 128))
    generator, found = torch.Generator().manual_seed(4), []
    states = torch.randn(2, 2, 2, 254, 128, generator=generator).bfloat16()
    tokens = torch.randn(4, 2, 8 * 128, generator=generator).bfloat16()
    angles = torch.rand(300, 128, generator=generator)
    for attend in (reference, partial(attend_coded, shape=Shape(4, 2, 3), launch=launch)):
        coded = CodedCache(model, 300)
        coded.cache.update(states[0], states[1], 0)
        coded.enter()
        position = torch.full((1,), 254, dtype=torch.int32)
        for qkv in tokens:
            out = attend(qkv, angles.cos().bfloat16(), angles.sin().bfloat16(), coded.layers[0], position, heads, 300)
            position += 1
        coded.leave(258)
        found.append(
            (out.float(), coded.layers[0].lengths.tolist(), *(part.decoded().float() for part in coded.cache.layers[0].parts))
        )
    assert found[0][1] == found[1][1]
    for mine, theirs in zip(found[1], found[0], strict=True):
        if isinstance(mine, torch.Tensor):
            assert (mine - theirs).norm() < 0.02 * theirs.norm()
