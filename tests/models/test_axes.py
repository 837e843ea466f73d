from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import FeatherweightError
from featherweight.models.axes import find_axes
from featherweight.models.skeleton import build_skeleton
from featherweight.models.structure import find_structure

from .families import EXPERTS, FAMILIES, make_config, make_model

LLAMA = ["q k v", "o", "gate up", "down"]
FUSED = ["query_key_value dense_h_to_4h", "dense", "dense_4h_to_h"]
#: consumers by their short names, one text for each axis
EXPECTED = {
    "opt-125m": ["q k v", "out", "fc1", "fc2"],
    "opt-350m": ["q k v", "out", "fc1", "fc2"],
    "phi3": ["qkv", "o", "gate_up", "down"],
    "gpt2": ["c_attn", "c", "c_fc", "c"],
    "falcon-7b": FUSED,
    "falcon-40b": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt-neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    **{family: ["q k v", "o", *["gate up", "down"] * 4] for family in EXPERTS},
    "qwen2-moe": ["q k v", "o", *["gate up", "down"] * 5],
}


def short(name):
    return name.rsplit(".", 1)[1].removesuffix("_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_axes_are_found_on_meta_in_order(family):
    skeleton = build_skeleton(make_config(family))
    structure = find_structure(skeleton)
    axes = find_axes(skeleton, structure)
    assert list(axes) == list(structure.blocks)
    for block, found in axes.items():
        texts = [" ".join(sorted(map(short, axis.consumers), key=" q k v gate up".find)) for axis in found]
        assert sorted(texts) == sorted(EXPECTED.get(family, LLAMA))
        read = [name for axis in found for name in axis.consumers]
        assert sorted(read) == sorted(linear.name for linear in structure.linears[block])
        for axis in found:
            assert bool(axis.expert) == (".experts." in axis.name) and axis.name.startswith(axis.expert)
            assert {structure.linear(name).shape[1] for name in axis.consumers} == {axis.size}
            assert axis.name == f"{axis.consumers[0]}.input" and axis.block == block
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in skeleton.modules())


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "qwen2-moe"])
def test_the_trace_agrees_with_a_real_forward(family):
    model = make_model(family)
    structure = find_structure(model)
    found = find_axes(model, structure)
    inputs = {}
    for linear in (linear for group in structure.linears.values() for linear in group):
        name = linear.name
        model.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0]}))
    model(torch.arange(5, 14)[None])
    for axes in found.values():
        for axis in axes:
            assert all(torch.equal(inputs[axis.consumers[0]], inputs[name]) for name in axis.consumers)
        firsts = [inputs[axis.consumers[0]] for axis in axes]
        assert not any(a.shape == b.shape and torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


def test_routers_and_experts_that_read_an_axis_are_named():
    skeleton = build_skeleton(make_config("qwen2-moe"))
    axes = find_axes(skeleton, find_structure(skeleton))["model.layers.0"]
    shared = next(axis for axis in axes if "shared_expert.gate_proj" in axis.consumers[0])
    assert {name.removeprefix("model.layers.0.mlp.") for name in shared.others} == {"gate", "experts", "shared_expert_gate"}
    assert axes[0].others == ()


def test_a_linear_that_never_runs_is_an_error():
    model = make_model("llama")
    model.model.layers[1].mlp.spare = nn.Linear(32, 32)
    with pytest.raises(FeatherweightError, match=r"spare: 0 times"):
        find_axes(model, find_structure(model))


def test_a_path_that_depends_on_values_is_an_error():
    model = make_model("llama")
    layer = model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: plain(x) if bool((x > 0).any()) else x
    with pytest.raises(FeatherweightError, match="cannot be traced"):
        find_axes(model, find_structure(model))
