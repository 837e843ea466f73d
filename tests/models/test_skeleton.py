from __future__ import annotations

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models.experts import separate_experts
from featherweight.models.skeleton import build_skeleton, materialize, release
from featherweight.models.weights import open_weights

from .families import EXPERTS, FAMILIES, save_model, some_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_holds_no_weights_and_becomes_the_model(family, tmp_path):
    reference = save_model(family, tmp_path)
    skeleton = build_skeleton(reference.config, torch.float32)
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    assert all(buffer.device.type == "cpu" for buffer in skeleton.buffers())
    weights = open_weights(tmp_path, skeleton)
    materialize(skeleton, "", weights, torch.float32, "cpu")
    tokens = some_tokens()
    logits = reference(tokens, use_cache=False).logits
    separate_experts(reference)
    assert skeleton.state_dict().keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(skeleton.state_dict()[name], tensor), name
    found = skeleton(tokens, use_cache=False).logits
    assert torch.equal(found, reference(tokens, use_cache=False).logits)
    if family in EXPERTS:  # two products where the fused module makes one
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-6)
    else:
        assert torch.equal(found, logits)
    tied = reference.get_input_embeddings().weight is reference.get_output_embeddings().weight
    assert (skeleton.get_input_embeddings().weight is skeleton.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("family", ["llama-tied-bias", "gpt2"])
def test_parts_load_and_go_again_and_tied_ones_stay_tied(family, tmp_path):
    reference = save_model(family, tmp_path)
    skeleton = build_skeleton(reference.config)
    weights = open_weights(tmp_path, skeleton)
    materialize(skeleton, "lm_head", weights, torch.float64, "cpu")
    embedding = skeleton.get_input_embeddings().weight
    assert embedding is skeleton.lm_head.weight and embedding.dtype == torch.float64
    assert sum(p.device.type == "cpu" for p in skeleton.parameters()) == 1
    release(skeleton, "lm_head")
    assert skeleton.get_input_embeddings().weight is skeleton.lm_head.weight
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


def test_dtype_comes_from_the_config_unless_given():
    from .families import make_config

    config = make_config("llama")
    config.dtype = torch.bfloat16
    assert build_skeleton(config).dtype == torch.bfloat16
    assert build_skeleton(config, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_weight_is_nan_unnoticed(bad, tmp_path):
    from .families import make_model

    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 4] = bad
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    skeleton = build_skeleton(model.config)
    weights = open_weights(tmp_path, skeleton)
    with pytest.raises(FeatherweightError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*NaN"):
        materialize(skeleton, "model.layers.1", weights, None, "cpu")
    with pytest.raises(FeatherweightError, match=r"model\.layers\.0\.mlp\.up_proj\.weight does not fit"):
        materialize(skeleton, "model.layers.0", weights, torch.float16, "cpu")


def test_unknown_modules_and_architectures_are_refused(tmp_path):
    from transformers import AutoConfig

    with pytest.raises(FeatherweightError, match="t5"):
        build_skeleton(AutoConfig.for_model("t5"))
    reference = save_model("llama", tmp_path)
    skeleton = build_skeleton(reference.config)
    with pytest.raises(FeatherweightError, match=r"layers\.2"):
        materialize(skeleton, "model.layers.2", open_weights(tmp_path, skeleton), None, "cpu")
