"""Our own decode step against transformers' generate, token by token; which models it refuses, and what it leaves of a model."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.decoding import Runner, Sampling, open_runner, why_not
from featherweight.evaluation.timing import random_tokens
from featherweight.kernels import registry
from featherweight.models.skeleton import build_skeleton
from featherweight.packed.integer import Integer
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import OP

sys.path.append(str(Path(__file__).parents[1] / "models"))
from families import COMMON, FAMILIES, make_config, make_model, some_tokens

CPU = torch.device("cpu")


def told(model, ids, count):
    """Greedy tokens by transformers' own generate."""
    with torch.no_grad():
        made = model.generate(
            ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    return made[:, ids.shape[1] :]


def made(runner, count):
    return torch.tensor(list(runner.tokens(count))).T


@pytest.fixture(scope="module")
def demo():
    return fw.load("demo", device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_of_dense_and_packed_models(demo, gptq_run, batch):
    for model in (demo, fw.load(gptq_run[1].folder, device="cpu", dtype=torch.float32)):
        ids = random_tokens(model, batch, 9, CPU)
        expected = told(model, ids, 40)
        runner, reason = open_runner(model, ids, 9 + 40)
        assert runner is not None and not reason and runner.difference < 1e-5
        assert torch.equal(made(runner, 40), expected)
        assert torch.equal(told(model, ids, 8), expected[:, :8])  # the model itself is as it was


TAKEN = ["llama", "llama-tied-bias", "qwen2", "qwen3", "gemma", "smollm3", "mistral-long"]
MORE = {
    "gemma": ("gemma", {**COMMON, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}),
    "smollm3": ("smollm3", {**COMMON, "no_rope_layers": [1, 1], "head_dim": 32}),
    "mistral-long": ("mistral", {**COMMON, "sliding_window": 64, "head_dim": 32}),
    "granite": ("granite", {**COMMON, "head_dim": 32, "residual_multiplier": 0.4}),
    "smollm3-unrotated": ("smollm3", {**COMMON, "no_rope_layers": [1, 0], "head_dim": 32}),
}


def family(name, monkeypatch):
    """A random model whose heads are 32 wide."""
    for key, value in MORE.items():
        monkeypatch.setitem(FAMILIES, key, value)
    kind, settings = FAMILIES[name]
    if name not in MORE and kind != "opt":
        monkeypatch.setitem(FAMILIES, name, (kind, {**settings, "head_dim": 32}))
    return make_model(name)


@pytest.mark.parametrize("name", TAKEN)
def test_tokens_of_every_family_that_it_runs(name, monkeypatch):
    model, ids = family(name, monkeypatch), some_tokens(2, 7)
    expected = told(model, ids, 32)
    runner, reason = open_runner(model, ids, 7 + 32)
    assert runner is not None, reason
    assert torch.equal(made(runner, 32), expected) and runner.difference < 1e-5


@pytest.mark.parametrize(
    "name, reason",
    [
        ("mistral", "window of 4 tokens"),
        ("gemma2", "softcapping"),
        ("phi3", "block 0 has other parts"),
        ("opt-125m", "the decoder has other parts"),
        ("smollm3-unrotated", "does not rotate"),
        ("granite", "other logits than the model"),
    ],
)
def test_what_it_does_not_run(name, reason, monkeypatch):
    model = family(name, monkeypatch)
    runner, why = open_runner(model, some_tokens(1, 7), 20)
    assert runner is None and reason in why
    if name != "granite":
        assert why == why_not(model, 20) == why_not(build_skeleton(make_config(name)), 20)


def test_a_module_of_another_kind_is_named(demo):
    model = copy.deepcopy(demo)
    model.model.layers[2].mlp.up_proj = nn.Sequential(nn.Linear(256, 768, bias=False))
    assert "up_proj of block 2" in why_not(model)
    model = copy.deepcopy(demo)
    model.model.norm = nn.LayerNorm(256)
    assert "a norm is of another kind (LayerNorm)" in why_not(model)


def test_weights_that_stack_are_stored_once(demo):
    model = copy.deepcopy(demo)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runners = [Runner(model, 1, 16) for _ in range(2)]
    attention = model.model.layers[0].self_attn
    stored = {module.weight.untyped_storage().data_ptr() for module in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(stored) == 1
    assert {runner.step.decoder.blocks[0].qkv.weight.untyped_storage().data_ptr() for runner in runners} == stored
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_packed_weights_that_stack_are_stored_once(demo, monkeypatch):
    monkeypatch.setitem(registry.OPS, OP, registry.OPS[OP][-1:])  # no kernel with a layout of its own
    model = copy.deepcopy(demo)
    generator = torch.Generator().manual_seed(0)
    for name in ("gate_proj", "up_proj"):
        codes = torch.randint(0, 16, (768, 256), generator=generator, dtype=torch.uint8)
        weight = Integer.from_codes(codes, torch.rand(768, 4, generator=generator) * 0.01, None, 4, 64)
        setattr(model.model.layers[0].mlp, name, PackedLinear(weight))
    mlp = model.model.layers[0].mlp
    values = [module.packed.dequantize() for module in (mlp.gate_proj, mlp.up_proj)]
    Runner(model, 1, 16)
    assert mlp.gate_proj.codes.untyped_storage().data_ptr() == mlp.up_proj.codes.untyped_storage().data_ptr()
    for before, module in zip(values, (mlp.gate_proj, mlp.up_proj), strict=True):
        assert torch.equal(module.packed.dequantize(), before)


def test_reading_on_cropping_and_growing(demo):
    ids = random_tokens(demo, 1, 12, CPU)
    expected = told(demo, ids, 10)
    runner = Runner(demo, 1, 9)
    runner.read(ids[:, :8])
    list(runner.tokens(2))
    assert runner.get_seq_length() == 9
    with pytest.raises(fw.FeatherweightError, match="the static cache is full"):
        runner.advance()
    runner.crop(-1)
    runner.grow(40)
    runner.read(ids[:, 8:])
    assert torch.equal(made(runner, 10), expected)
    runner.crop(5)
    runner.read(ids[:, 5:])
    assert torch.equal(made(runner, 10), expected)


def test_draws_follow_their_seed(demo):
    ids = random_tokens(demo, 1, 8, CPU)

    def drawn(seed):
        runner = open_runner(demo, ids, 30, sampling=Sampling(1.0), seed=seed)[0]
        return made(runner, 20).tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_logits_that_are_not_finite(demo):
    model = copy.deepcopy(demo)
    model.model.layers[1].mlp.down_proj.weight.data[3, 3] = torch.inf
    runner = Runner(model, 1, 30)
    runner.read(random_tokens(model, 1, 8, CPU))
    with pytest.raises(fw.FeatherweightError, match="not finite"):
        list(runner.tokens(4))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")


@needs_cuda
@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_make_the_same_tokens(gptq_run, batch):
    for name in ("demo", gptq_run[1].folder):
        model = fw.load(name, device="cuda", dtype=torch.float32)
        ids = random_tokens(model, batch, 500, torch.device("cuda"))
        expected = told(model, ids, 40)
        runner, reason = open_runner(model, ids, 600)
        assert runner is not None, reason
        assert torch.equal(made(runner, 40), expected.cpu()) and len(runner._graphs) == 2
