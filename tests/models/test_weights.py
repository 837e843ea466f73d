from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from featherweight.errors import FeatherweightError
from featherweight.models.experts import separate_experts
from featherweight.models.skeleton import build_skeleton
from featherweight.models.weights import LazyWeights, LoadedWeights, open_weights

from .families import EXPERTS, FAMILIES, save_model


def rewrite(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_read_under_its_name_in_the_model(family, tmp_path):
    reference = save_model(family, tmp_path)
    weights = open_weights(tmp_path, build_skeleton(reference.config))
    separate_experts(reference)
    state = reference.state_dict()
    assert set(weights.names()) == {name for name, _ in reference.named_parameters()}
    for name in weights.names():
        assert weights.shape(name) == tuple(state[name].shape)
        assert weights.dtype(name) == torch.float32
        assert torch.equal(weights.read(name), state[name]), name
    assert weights.total_bytes() == 4 * sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_experts_are_read_one_by_one_however_they_are_stored(family, fused, tmp_path):
    reference = save_model(family, tmp_path)
    if fused:
        save_file(dict(reference.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    separate_experts(reference)
    weights = open_weights(tmp_path, build_skeleton(reference.config))
    assert isinstance(weights, LazyWeights)
    state = reference.state_dict()
    assert set(weights.names()) == set(state) and sum(".experts." in name for name in state) >= 2 * 4 * 3
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in state.items())


def test_names_that_only_transformers_knows_are_left_to_it(tmp_path):
    reference = save_model("mixtral", tmp_path)
    state = reference.state_dict()
    for separate in (False, True):
        weights = open_weights(tmp_path, build_skeleton(reference.config, fused_experts=not separate))
        assert isinstance(weights, LazyWeights if separate else LoadedWeights)
    assert torch.equal(
        weights.read("model.layers.1.mlp.experts.2.up_proj.weight"), state["model.layers.1.mlp.experts.gate_up_proj"][2, 48:]
    )
    fused = open_weights(tmp_path, build_skeleton(reference.config, fused_experts=True))
    assert torch.equal(fused.read("model.layers.1.mlp.experts.down_proj"), state["model.layers.1.mlp.experts.down_proj"])


@pytest.mark.parametrize("direction", ["missing", "added"])
def test_a_base_prefix_may_be_missing_or_added(direction, tmp_path):
    reference = save_model("gpt2", tmp_path)
    if direction == "missing":
        rewrite(tmp_path, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    else:
        rewrite(
            tmp_path, lambda tensors: {f"transformer.{name.removeprefix('transformer.')}": t for name, t in tensors.items()}
        )
    weights = open_weights(tmp_path, build_skeleton(reference.config))
    assert isinstance(weights, LazyWeights)
    assert torch.equal(weights.read("transformer.h.1.mlp.c_fc.weight"), reference.transformer.h[1].mlp.c_fc.weight)


def test_old_buffers_that_transformers_ignores_are_ignored(tmp_path):
    reference = save_model("gpt2", tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)})
    assert open_weights(tmp_path, build_skeleton(reference.config)).names()


def test_shards_and_the_fingerprint(tmp_path):
    reference = save_model("llama", tmp_path / "a", max_shard_size="40KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    skeleton = build_skeleton(reference.config)
    weights = open_weights(tmp_path / "a", skeleton)
    assert torch.equal(weights.read("lm_head.weight"), reference.lm_head.weight)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_weights(tmp_path / "b", skeleton).fingerprint() == weights.fingerprint()
    shard = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert open_weights(tmp_path / "b", skeleton).fingerprint() != weights.fingerprint()


def test_a_truncated_shard_is_named(tmp_path):
    reference = save_model("llama", tmp_path)
    shard = tmp_path / "model.safetensors"
    whole = shard.read_bytes()
    skeleton = build_skeleton(reference.config)
    weights = open_weights(tmp_path, skeleton)
    for size in (4, 200, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(FeatherweightError, match=r"model\.safetensors is truncated"):
            open_weights(tmp_path, skeleton)
    with pytest.raises(FeatherweightError, match="truncated"):
        for name in weights.names():
            weights.read(name)


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path):
    reference = save_model("llama", tmp_path)
    skeleton = build_skeleton(reference.config)
    name = "model.layers.1.mlp.up_proj.weight"
    original = load_file(tmp_path / "model.safetensors")
    for change in (
        lambda t: {key: value for key, value in t.items() if key != name},
        lambda t: {**t, "model.layers.1.mlp.up_proj.weighs": torch.ones(2)},
        lambda t: {**t, name: torch.ones(3, 3)},
        lambda t: {key.replace("up_proj.weight", "up_proj.weighs"): value for key, value in t.items()},
    ):
        save_file(change(dict(original)), tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(FeatherweightError, match=r"up_proj\.weigh"):
            open_weights(tmp_path, skeleton).read("lm_head.weight")


def test_quantized_checkpoints_are_refused(tmp_path):
    reference = save_model("llama", tmp_path)
    skeleton = build_skeleton(reference.config)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    with pytest.raises(FeatherweightError, match=rf"{name} is not stored as floating point"):
        open_weights(tmp_path, skeleton).read(name)
    skeleton.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(FeatherweightError, match="gptq"):
        open_weights(tmp_path, skeleton)


def test_a_tied_tensor_may_be_stored_under_either_name_but_not_as_two(tmp_path):
    reference = save_model("llama-tied-bias", tmp_path)
    skeleton = build_skeleton(reference.config)
    embedding = "model.embed_tokens.weight"
    rewrite(tmp_path, lambda t: {("lm_head.weight" if key == embedding else key): value for key, value in t.items()})
    weights = open_weights(tmp_path, skeleton)
    assert "lm_head.weight" not in weights.names()
    assert torch.equal(weights.read(embedding), reference.lm_head.weight)
    rewrite(tmp_path, lambda t: {**t, embedding: t["lm_head.weight"] + 1})
    with pytest.raises(FeatherweightError, match="tie_word_embeddings"):
        open_weights(tmp_path, skeleton)


def test_unknown_names_come_with_the_nearest(tmp_path):
    reference = save_model("llama", tmp_path)
    weights = open_weights(tmp_path, build_skeleton(reference.config))
    with pytest.raises(FeatherweightError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        weights.read("layers.0.mlp.up_proj.weight")


def test_an_index_is_followed(tmp_path):
    reference = save_model("llama", tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    save_file({"stray": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    weights = open_weights(tmp_path, build_skeleton(reference.config))
    assert set(weights.names()) == set(index["weight_map"])
