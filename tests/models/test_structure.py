from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import FeatherweightError
from featherweight.models.skeleton import build_skeleton
from featherweight.models.structure import find_structure

from .families import EXPERTS, FAMILIES, make_config, make_model

ATTENTION = {
    "opt-125m": "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj fc1 fc2",
    "gpt2": "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj",
    "phi3": "self_attn.o_proj self_attn.qkv_proj mlp.gate_up_proj mlp.down_proj",
    "falcon-7b": "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
    "bloom": "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
    "gpt-neox": "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
}
DENSE = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
SHARED = " mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj"


def expected_linears(family):
    name = {"opt-350m": "opt-125m", "falcon-40b": "falcon-7b"}.get(family, family)
    if family in EXPERTS:
        experts = {f"mlp.experts.{number}.{name}_proj" for number in range(4) for name in ("gate", "up", "down")}
        return experts | set((" ".join(DENSE.split()[:4]) + (SHARED if family == "qwen2-moe" else "")).split())
    return set(ATTENTION.get(name, DENSE).split())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_linears_are_found_on_meta(family):
    skeleton = build_skeleton(make_config(family))
    structure = find_structure(skeleton)
    assert len(structure.blocks) == 2 and structure.blocks[1].endswith(".1")
    for block in structure.blocks:
        assert {linear.name.removeprefix(f"{block}.") for linear in structure.linears[block]} == expected_linears(family)
        for linear in structure.linears[block]:
            assert tuple(linear.read(skeleton).shape) == linear.shape
            assert linear.transposed == (family == "gpt2")
            assert (linear.bias_of(skeleton) is not None) == linear.bias


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_out_of_the_ledger(family):
    skeleton = build_skeleton(make_config(family))
    structure = find_structure(skeleton)
    kept = {linear.weight_name for group in structure.linears.values() for linear in group}
    assert kept | set(structure.parameters) == set(skeleton.state_dict())
    assert not kept & set(structure.parameters)
    assert all(structure.parameters.values())
    config = skeleton.config
    assert structure.tied == config.tie_word_embeddings
    assert structure.parameters[f"{structure.embedding}.weight"] == "embedding"
    reason = structure.parameters[f"{structure.head}.weight"]
    assert reason == (f"head (tied to {structure.embedding}.weight)" if structure.tied else "head")
    assert "linear" not in structure.parameters.values()


def test_reasons_are_told_apart():
    def reasons(family):
        return find_structure(build_skeleton(make_config(family))).parameters

    assert reasons("llama")["model.layers.0.input_layernorm.weight"] == "norm"
    assert reasons("qwen3")["model.layers.0.self_attn.q_norm.weight"] == "norm"
    assert reasons("qwen2")["model.layers.0.self_attn.q_proj.bias"] == "bias"
    assert reasons("opt-350m")["model.decoder.project_in.weight"] == "linear outside the blocks"
    assert reasons("opt-350m")["model.decoder.embed_positions.weight"] == "position embedding"
    assert reasons("gpt2")["transformer.wpe.weight"] == "position embedding"
    mixtral = reasons("mixtral")
    assert mixtral["model.layers.0.mlp.gate.weight"] == "router"
    fused = find_structure(build_skeleton(make_config("mixtral"), fused_experts=True)).parameters
    assert fused["model.layers.0.mlp.experts.gate_up_proj"] == "expert 3-D tensor: 4 experts of [96, 32]"
    assert reasons("qwen2-moe")["model.layers.0.mlp.shared_expert_gate.weight"] == "router"
    assert reasons("gpt-oss")["model.layers.0.self_attn.sinks"] == "attention sink"
    assert reasons("gpt-oss")["model.layers.0.mlp.router.weight"] == "router"


def test_experts_in_a_module_list_are_left_alone_with_the_reason():
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        layer.mlp.gate = nn.Linear(32, 3)
    structure = find_structure(model)
    assert structure.parameters["model.layers.0.mlp.experts.2.weight"] == "expert linear: one of the experts in 'experts'"
    assert structure.parameters["model.layers.0.mlp.gate.weight"] == "router"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_linear_can_be_read_and_replaced(family):
    model = make_model(family)
    structure = find_structure(model)
    tokens = torch.arange(5, 14)[None]
    before = model(tokens).logits
    for linear in (linear for group in structure.linears.values() for linear in group):
        module = nn.Linear(linear.shape[1], linear.shape[0], bias=linear.bias)
        module.weight.data = linear.read(model).clone()
        if linear.bias:
            module.bias.data = linear.bias_of(model).clone()
        linear.replace(model, module)
    assert torch.allclose(model(tokens).logits, before, atol=1e-5)


def test_errors_name_what_was_found():
    model = make_model("llama")
    with pytest.raises(FeatherweightError, match=r"q_proj"):
        find_structure(model).linear("model.layers.0.self_attn.q_prj")
    del model.model.layers[1]
    with pytest.raises(FeatherweightError, match=r"model\.layers.*1"):
        find_structure(model)
