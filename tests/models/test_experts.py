"""Experts as linears: what they compute, where their tensors lie, which tokens they see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featherweight.models.experts import all_tokens_for, find_experts, noting_routing, repeating_routing
from featherweight.models.skeleton import build_skeleton
from featherweight.models.weights import LazyWeights, open_weights

from .families import EXPERTS, make_model, save_model, some_tokens

BANK = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_separate_experts_compute_what_fused_ones_do(family: str) -> None:
    tokens = some_tokens()
    fused, separate = (make_model(family, torch.float64, separate=each) for each in (False, True))
    assert not find_experts(fused) and list(find_experts(separate)) == [BANK, BANK.replace("0", "1")]
    torch.testing.assert_close(separate(tokens).logits, fused(tokens).logits, rtol=0, atol=1e-12)
    layout = find_experts(separate)[BANK].layout
    tensors = {name.removeprefix(f"{BANK}."): tensor for name, tensor in separate.state_dict().items() if name.startswith(BANK)}
    assert tensors.keys() == layout.cuts().keys()
    for name, tensor in layout.fuse(tensors).items():
        assert torch.equal(tensor, fused.state_dict()[f"{BANK}.{name}"])


def test_an_expert_sees_its_own_tokens_or_all_of_them() -> None:
    model, tokens = make_model("qwen3-moe", separate=True), some_tokens(4, 16)
    seen: dict[int, torch.Tensor] = {}
    for number in range(4):
        linear = model.get_submodule(f"{BANK}.{number}.gate_proj")
        linear.register_forward_pre_hook(lambda module, args, number=number: seen.update({number: args[0]}))
    routed: dict[str, torch.Tensor] = {}
    model.get_submodule(BANK).register_forward_pre_hook(lambda module, args: routed.update(hidden=args[0], index=args[1]))
    before = model(tokens).logits
    for number in range(4):
        assert torch.equal(seen[number], routed["hidden"][(routed["index"] == number).any(-1)])
    with all_tokens_for(model, {f"{BANK}.1", f"{BANK}.3"}):
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-5)
    assert torch.equal(seen[1], routed["hidden"]) and torch.equal(seen[3], routed["hidden"])
    assert len(seen[0]) < len(routed["hidden"]) > len(seen[2])
    model(tokens)
    assert len(seen[1]) < len(routed["hidden"])


def test_a_noted_routing_can_be_repeated() -> None:
    model, tokens, noted = make_model("mixtral", separate=True), some_tokens(), dict[str, torch.Tensor]()
    with noting_routing(model, "model.layers.0", noted), noting_routing(model, "model.layers.1", noted):
        before = model(tokens).logits
    assert len(noted) == 2 * 2
    for layer in model.model.layers:
        layer.mlp.gate.weight.neg_()
    with repeating_routing(model, noted):
        assert torch.equal(model(tokens).logits, before)
    assert float((model(tokens).logits - before).abs().max()) > 0.01


def test_experts_in_mxfp4_are_read_as_transformers_decodes_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = save_model("gpt-oss", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    generator, wanted = torch.Generator().manual_seed(0), {}
    for name in [name for name in tensors if name.endswith("experts.gate_up_proj")]:
        blocks = torch.randint(0, 256, (4, 96, 1, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 130, (4, 96, 1), dtype=torch.uint8, generator=generator)
        wanted[name] = convert_moe_packed_tensors(blocks, scales)
        del tensors[name]
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    skeleton = build_skeleton(model.config)
    skeleton.config.quantization_config = {"quant_method": "mxfp4"}
    weights = open_weights(tmp_path, skeleton)
    assert isinstance(weights, LazyWeights)
    whole = wanted[f"{BANK}.gate_up_proj"]  # [experts, in, out], gate and up in turn
    for number in range(4):
        assert torch.equal(weights.read(f"{BANK}.{number}.gate_proj.weight"), whole[number, :, 0::2].T)
        assert torch.equal(weights.read(f"{BANK}.{number}.up_proj.weight"), whole[number, :, 1::2].T)
        assert weights.dtype(f"{BANK}.{number}.up_proj.weight") == torch.bfloat16
        assert weights.dtype(f"{BANK}.{number}.down_proj.weight") == torch.float32
