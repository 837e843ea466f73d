"""Which rows belong to which head: against what families' code says, and refused where a norm couples all heads."""

from __future__ import annotations

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models.heads import find_heads, runs_without
from featherweight.models.producers import find_all_producers
from featherweight.models.resize import resized_settings
from featherweight.models.skeleton import build_skeleton
from featherweight.models.structure import find_structure
from featherweight.models.units import KV_GROUPS, QUERY_HEADS, find_channels

from .families import COMMON, make_config


def model_of(family: str):
    model = build_skeleton(make_config(family))
    return model, find_structure(model)


def heads_of(model, structure):
    return find_heads(model, structure, find_all_producers(model, structure))


def spelled(units, name: str) -> str:
    """The units of a tensor's rows in runs of four, '-' where they stay."""
    owners = next(owners for key, (_, owners) in units.tensors.items() if key.endswith(name))
    runs = [owners[start : start + 4] for start in range(0, len(owners), 4)]
    assert all(len(set(run)) == 1 for run in runs)
    return "".join("-" if run[0] < 0 else str(run[0]) for run in runs)


@pytest.mark.parametrize(
    ("family", "kind", "name", "expected"),
    [
        ("llama", KV_GROUPS, "q_proj.weight", "00001111"),
        ("llama", KV_GROUPS, "k_proj.weight", "0011"),
        ("llama", QUERY_HEADS, "q_proj.weight", "00112233"),
        ("llama-tied-bias", KV_GROUPS, "k_proj.bias", "0011"),
        ("phi3", KV_GROUPS, "qkv_proj.weight", "0000111100110011"),
        ("gpt2", KV_GROUPS, "c_attn.weight", "001122330011223300112233"),
        ("gpt-neox", KV_GROUPS, "query_key_value.bias", "000000111111222222333333"),
        ("falcon-7b", QUERY_HEADS, "query_key_value.weight", "00112233----"),
        ("falcon-40b", KV_GROUPS, "query_key_value.weight", "0000000011111111"),
        ("falcon-40b", QUERY_HEADS, "query_key_value.weight", "0011----2233----"),
    ],
)
def test_rows_belong_to_the_head_they_act_on(family, kind, name, expected):
    model, structure = model_of(family)
    found = heads_of(model, structure)
    assert set(found) == set(structure.blocks)
    assert spelled(found[structure.blocks[-1]][kind], name) == expected


def test_sinks_go_with_their_heads_and_shared_norms_stay():
    model, structure = model_of("gpt-oss")
    units = heads_of(model, structure)[structure.blocks[0]]
    assert units[KV_GROUPS].tensors[f"{structure.blocks[0]}.self_attn.sinks"] == (0, (0, 0, 1, 1))
    model, structure = model_of("qwen3")
    assert not [name for name in heads_of(model, structure)[structure.blocks[0]][KV_GROUPS].tensors if "norm" in name]


def test_a_norm_over_all_heads_is_refused():
    from transformers import AutoConfig

    model = build_skeleton(AutoConfig.for_model("olmo2", **COMMON))
    with pytest.raises(FeatherweightError, match=r"several KV groups at once.*q_proj"):
        heads_of(model, find_structure(model))


def test_a_smaller_block_must_do_what_the_larger_one_does():
    model, structure = model_of("bloom")
    units = heads_of(model, structure)[structure.blocks[0]][KV_GROUPS]
    kept = torch.tensor([1, 3])
    assert not runs_without(model, structure, units, kept, model)  # its slopes and its views count heads
    model, structure = model_of("gpt-neox")
    units = heads_of(model, structure)[structure.blocks[0]][KV_GROUPS]
    assert runs_without(model, structure, units, kept, model)


def test_channels_share_their_columns_with_rows_of_fused_linears():
    model, structure = model_of("phi3")
    units = find_channels(structure, find_all_producers(model, structure))[structure.blocks[1]]
    fused = torch.randn(96, 32)
    left = units.cut(f"{structure.blocks[1]}.mlp.gate_up_proj.weight", fused, torch.tensor([0, 5, 47]))
    assert torch.equal(left, fused[[0, 5, 47, 48, 53, 95]])
    assert units.shape(f"{structure.blocks[1]}.mlp.gate_up_proj.weight", (96, 32), 3) == (6, 32)


def test_settings_that_a_config_derives_are_written_down():
    config = make_config("qwen2")
    raw = config.to_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in build_skeleton(config).state_dict().items()}
    for name in [name for name in shapes if "self_attn" in name and "o_proj" not in name]:
        shapes[name] = (shapes[name][0] // 2, *shapes[name][1:])
    shapes |= {name: (32, 16) for name in shapes if name.endswith("o_proj.weight")}
    found = resized_settings(config, raw, [(4, 2), (2, 1)], shapes, "number of heads", besides={"head_dim": 8})
    assert found == {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    with pytest.raises(FeatherweightError, match="no setting of 4 that makes it 2"):
        resized_settings(config, raw, [(4, 2), (2, 1)], shapes, "number of heads")
