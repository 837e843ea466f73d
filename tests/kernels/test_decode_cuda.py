"""Integer products in a decode step: the CUDA source, run on a CPU."""

from dataclasses import replace

import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401
from test_multiply import weight_of
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight.decoding import open_runner
from featherweight.decoding.coded import CodedRow
from featherweight.kernels import registry
from featherweight.kernels.cuda.multiply import Shape, multiply
from featherweight.kernels.reference.decode_rows import activated
from featherweight.packed.integer import Integer
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import OP


@needs_compiler
@pytest.mark.parametrize(("activation", "shape"), [("silu", Shape(256, 2, 1, 2, blocks=2)), ("gelu_tanh", Shape(256, 2, 2, 1))])
def test_one_half_of_the_outputs_times_the_other(emulation, activation, shape):  # noqa: F811
    weight, dense = weight_of(160, 640, 4, 64, True, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    x, bias = 0.1 * torch.randn(2, 640, generator=generator).bfloat16(), torch.randn(160, generator=generator).bfloat16()
    y = torch.full((2, 80), torch.nan).bfloat16()
    multiply(x, weight, bias, y, shape, activation=activation)
    first, second = (x.double() @ dense.T + bias.double()).chunk(2, -1)
    expected = activated(first, activation) * second
    assert (y.double() - expected).norm() < 5e-3 * expected.norm()


@needs_compiler
@pytest.mark.parametrize("form", ["plain", "biased"])
def test_a_step_of_integer_weights(emulation, monkeypatch, form):  # noqa: F811
    """Stacked by tiles, gates taken along: the logits are those of the model's own forward, by its modules."""
    kernels = (replace(registry.OPS[OP][0], supports=lambda signature, device: (True, "")), *registry.OPS[OP][1:])
    monkeypatch.setitem(registry.OPS, OP, kernels)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
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
    runner, reason = open_runner(model, torch.randint(0, 112, (1, 3)), 6)
    assert runner is not None, reason
    block = runner.step.decoder.blocks[0]
    assert all(
        isinstance(each, CodedRow) for each in (block.qkv, block.output, block.gate_up, block.down, runner.step.decoder.head)
    )
    assert block.gate_up.gates and runner.difference < 0.02
    projections = (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.v_proj)
    assert len({each.prepared_codes.untyped_storage().data_ptr() for each in projections}) == 1
    assert len(list(runner.tokens(2))) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
