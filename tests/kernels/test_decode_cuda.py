"""The CUDA sources of a decode step, run on a CPU: what a product takes along, and attention by clusters of blocks."""

from dataclasses import replace

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight.decoding import open_runner
from featherweight.decoding.coded import CodedRow
from featherweight.kernels import registry
from featherweight.kernels.cuda import attend as clustered
from featherweight.kernels.cuda import compiler
from featherweight.kernels.cuda.around import Around, Scaled
from featherweight.kernels.cuda.multiply import Shape, blocks_of, multiply
from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference import decode_attention
from featherweight.kernels.reference.decode_rows import activated
from featherweight.packed.integer import Integer
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import OP


@needs_compiler
@pytest.mark.parametrize("shape", [Shape(256, 1, 1, 2), Shape(256, 1, 2, 1, splits=2, blocks=2), Shape(256, 2, 1, 2, blocks=1)])
def test_norms_and_sums_taken_along(emulation, shape):  # noqa: F811
    weight, dense = weight_of(80, 1152, 4, 128, True, torch.float16)
    generator = torch.Generator().manual_seed(0)
    row, gain = torch.randn(1, 1152, generator=generator).bfloat16(), torch.rand(1152, generator=generator)
    before = Scaled((row.float() * gain).bfloat16(), torch.stack([part.float().square().sum() for part in row[0].split(100)]), 1e-5)
    residual, following = torch.randn(1, 80, generator=generator).bfloat16(), torch.rand(80, generator=generator)
    bias = torch.randn(80, generator=generator).bfloat16()
    after = Scaled(torch.full((1, 80), torch.nan).bfloat16(), torch.full((blocks_of(80, shape),), torch.nan), 1e-5)
    normed = row.double() * gain * (row.double().square().mean() + 1e-5).rsqrt()
    expected = residual.double() + normed @ dense.T + bias.double()
    multiply(before.x, weight, bias, residual, shape, around=Around(before, None, residual, following, after))
    assert (residual.double() - expected).norm() < 5e-3 * expected.norm()
    assert torch.equal(after.x, (residual.float() * following).bfloat16())
    torch.testing.assert_close(after.squares.sum(), residual.float().square().sum())


@needs_compiler
@pytest.mark.parametrize(("activation", "shape"), [("silu", Shape(256, 2, 1, 2, blocks=2)), ("gelu_tanh", Shape(256, 2, 2, 1))])
def test_one_half_of_the_outputs_times_the_other(emulation, activation, shape):  # noqa: F811
    weight, dense = weight_of(160, 640, 4, 64, True, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    x, bias = 0.1 * torch.randn(1, 640, generator=generator).bfloat16(), torch.randn(160, generator=generator).bfloat16()
    y = torch.full((1, 80), torch.nan).bfloat16()
    multiply(x, weight, bias, y, shape, around=Around(activation=activation))
    first, second = (x.double() @ dense.T + bias.double()).chunk(2, -1)
    expected = activated(first, activation) * second
    assert (y.double() - expected).norm() < 5e-3 * expected.norm()


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "keys", "group", "dim", "length", "position", "normed", "dtype"),
    [
        (1, 2, 3, 32, 40, 0, False, torch.bfloat16),
        (2, 1, 2, 64, 300, 130, True, torch.float16),
        (1, 1, 1, 128, 80, 79, True, torch.bfloat16),
        (1, 1, 2, 128, 600, 520, False, torch.float16),
    ],
)
def test_attention_by_clusters(emulation, batch, keys, group, dim, length, position, normed, dtype):  # noqa: F811
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    heads = Heads(keys, group, dim, dim**-0.5, *(drawn(dim) if normed else None for _ in range(2)), 1e-6)
    cosine, sine = drawn(length, dim).to(dtype), drawn(length, dim).to(dtype)
    cache = [drawn(batch, keys, length, dim).to(dtype) for _ in range(2)]
    ours, theirs = [each.clone() for each in cache], [each.clone() for each in cache]
    for here in (max(0, position - 1), position):  # the second finds what the first appended
        qkv, at = drawn(batch, (group + 2) * keys * dim).to(dtype), torch.tensor([here], dtype=torch.int32)
        empty = torch.full((batch, keys * group * dim), torch.nan).to(dtype)
        found = clustered.attend(qkv, cosine, sine, *ours, at, heads, length, empty).float()
        expected = decode_attention.attend(qkv, cosine, sine, *theirs, at, heads, None, torch.empty_like(empty)).float()
        assert (found - expected).norm() < 1e-3 * expected.norm()
        for one, other in zip(ours, theirs, strict=True):
            assert (one.float() - other.float()).norm() < 1e-3 * other.float().norm()


@needs_compiler
@pytest.mark.parametrize("form", ["plain", "biased"])
def test_a_step_of_integer_weights(emulation, monkeypatch, form):  # noqa: F811
    """Stacked by tiles, norms, gates and sums taken along: the logits are those of the model's own forward, by its modules."""
    kernels = (replace(registry.OPS[OP][0], supports=lambda signature, device: (True, "")), *registry.OPS[OP][1:])
    monkeypatch.setitem(registry.OPS, OP, kernels)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        vocab_size=112, attention_bias=form == "biased", mlp_bias=form == "biased",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            codes = torch.randint(0, 16, module.weight.shape, dtype=torch.uint8)
            weight = Integer.from_codes(codes, torch.rand(len(codes), module.in_features // 32) * 0.02, None, 4, 32)
            bias = None if module.bias is None else torch.randn(len(codes)).bfloat16()
            model.set_submodule(name, PackedLinear(weight, bias, torch.bfloat16))
        elif module is model.model.norm or "layernorm" in name:
            module.weight.data = 1 + 0.3 * torch.randn(64).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runner, reason = open_runner(model, torch.randint(0, 112, (1, 5)), 8)
    assert runner is not None, reason
    block = runner.step.decoder.blocks[1]
    assert all(isinstance(each, CodedRow) for each in (block.qkv, block.output, block.gate_up, block.down, runner.step.decoder.head))
    assert block.gate_up.gates and runner.difference < 0.02
    projections = (model.model.layers[1].self_attn.q_proj, model.model.layers[1].self_attn.v_proj)
    assert len({each.prepared_codes.untyped_storage().data_ptr() for each in projections}) == 1
    assert len(list(runner.tokens(3))) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_attention_compiles_for_hopper(tmp_path, monkeypatch):
    if compiler.missing():
        pytest.skip(compiler.missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"ACTIVATION": 0, "DIM": 128, "KEYS": 8, "GROUP": 3, "NORMED": 0, "THREADS": 128}
    assert compiler.build("attend.cu", constants, "sm_90")[:4] == b"\x7fELF"
