"""Checkpoints with fewer channels, heads and blocks: equal to the masked model, loaded by plain transformers, compressed on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import featherweight as fw
from common import OPT
from featherweight.engine.progress import Event
from featherweight.errors import FeatherweightError
from featherweight.packed.files import sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import FAMILIES, save_model, some_tokens

CALIBRATION = {"samples": 8, "length": 64}


@pytest.fixture(scope="module")
def narrower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrink") / "out"
    return fw.shrink("demo", folder, mlp=0.25, calibration=CALIBRATION, device="cpu")


def test_plain_transformers_loads_it(narrower):
    script = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(narrower.folder)!r})\n"
        f"AutoTokenizer.from_pretrained({str(narrower.folder)!r})\n"
        "assert 'featherweight' not in sys.modules\n"
        "print(sum(p.numel() for p in model.parameters()), model.config.intermediate_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    parameters, width = map(int, done.stdout.split())
    assert (parameters, width) == (narrower.parameters[1], 576) and narrower.widths == {"channels": (768, (576,) * 4)}
    assert narrower.parameters[0] - parameters == 4 * 3 * 192 * 256
    assert json.loads((narrower.folder / "shrink.json").read_text())["parameters"] == list(narrower.parameters)


def zero_what_is_gone(dense, small) -> int:
    """Zero the columns of `dense` that are not in `small`; returns how many."""
    gone = 0
    for name, module in dense.named_modules():
        weight, left = getattr(module, "weight", None), getattr(small.get_submodule(name), "weight", None)
        if weight is None or weight.ndim != 2 or weight.shape[0] != left.shape[0] or weight.shape == left.shape:
            continue
        same = (weight[:, :, None] == left[:, None, :]).all(0)  # which old column each new one is
        assert int(same.any(1).sum()) == left.shape[1]
        module.weight.data[:, ~same.any(1)] = 0.0
        gone += int((~same.any(1)).sum())
    return gone


@pytest.mark.parametrize(
    ("model", "cut", "columns"),
    [
        ("demo", {"mlp": 0.5}, 4 * 384),
        (str(OPT), {"mlp": 0.5}, None),
        ("demo", {"heads": 0.5}, 4 * 128),
        ("demo", {"heads": 0.5, "head_unit": "query", "mlp": 0.25}, 4 * (128 + 192)),
    ],
)
def test_without_repair_it_equals_the_model_whose_columns_are_zero(model, cut, columns, tmp_path):
    result = fw.shrink(model, tmp_path / "out", **cut, repair=False, calibration=CALIBRATION, device="cpu")
    dense, small = fw.load(model, device="cpu", dtype=torch.float32), fw.load(result.folder, device="cpu", dtype=torch.float32)
    gone = zero_what_is_gone(dense, small)
    assert gone and columns in (None, gone)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=tokens).logits, dense(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cut", [{"mlp": 0.25}, {"heads": 0.5}])
def test_the_repair_helps(cut, tmp_path):
    perplexities = []
    for repair in (True, False):
        calibration = {"samples": 24, "length": 256}  # several tokens a channel
        made = fw.shrink("demo", tmp_path / str(repair), **cut, repair=repair, calibration=calibration, device="cpu")
        perplexities.append(fw.evaluate(made.folder, "heldout", length=256, windows=8)[0].value)
    assert perplexities[0] < perplexities[1]


def test_blocks_that_turn_their_inputs_least_go(tmp_path):
    result = fw.shrink("demo", tmp_path / "out", blocks=2, mlp=0.125, calibration=CALIBRATION, device="cpu")
    assert len(result.influence) == 4 and result.largest_difference < 1e-5
    assert set(result.removed) == set(sorted(result.influence, key=result.influence.get)[:2])
    assert fw.load(result.folder, device="cpu").config.num_hidden_layers == 2


def test_every_recipe_goes_on_from_it(narrower, tmp_path):
    plan = fw.plan(narrower.folder, "gptq-4bit", changes={"calibration.samples": 4, "calibration.length": 64})
    result = fw.compress(plan, tmp_path / "out")
    assert result.proof["identical"] and result.totals.file_bytes == plan.totals.file_bytes


def shrink_family(family, folder, **cut):
    """Shrink a tiny model of a family; None if it is refused, before anything was written, and with a way out."""
    save_model(family, folder / "model")
    np.save(folder / "tokens.npy", some_tokens(8, 32).numpy())
    calibration = {"source": str(folder / "tokens.npy"), "samples": 8, "length": 32}
    try:
        result = fw.shrink(folder / "model", folder / "out", **cut, calibration=calibration, device="cpu")
    except FeatherweightError as problem:
        assert problem.fix and not (folder / "out").exists()
        return None
    assert result.largest_difference < 1e-5 and result.parameters[1] < result.parameters[0]
    assert fw.verify(result.folder)["bytes"] == result.file_bytes[1]
    return result


#: Channels that lie inside experts; Bloom's MLP is always four times as wide as its hidden states.
WITHOUT_CHANNELS = {"mixtral", "qwen3-moe", "olmoe", "gpt-oss", "bloom"}
#: Configs whose head size is the hidden size over the number of heads; OLMoE has a norm over all heads.
WITHOUT_HEADS = {"opt-125m", "opt-350m", "gpt2", "falcon-7b", "falcon-40b", "bloom", "gpt-neox", "olmoe"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_lose_channels_and_blocks_or_say_why_not(family, tmp_path):
    result = shrink_family(family, tmp_path, mlp=0.25, blocks=1)
    assert (result is None) == (family in WITHOUT_CHANNELS)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_lose_heads_or_say_why_not(family, tmp_path):
    result = shrink_family(family, tmp_path, heads=0.5, blocks=1)
    assert (result is None) == (family in WITHOUT_HEADS)
    assert result is None or result.widths == {"kv_groups": (2, (1,))}


@pytest.mark.parametrize("family", ["phi3", "qwen2", "gpt-oss"])
def test_single_query_heads_go_from_every_group(family, tmp_path):
    result = shrink_family(family, tmp_path, heads=0.5, head_unit="query")
    assert result.widths == {"query_heads": (4, (2, 2))}
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 2, 8)


@pytest.mark.parametrize(
    ("family", "cut"),
    [
        ("gpt-neox", {"mlp": 0.25, "heads": 0.25}),
        ("llama-tied-bias", {"mlp": 0.25, "heads": 0.5, "blocks": 1}),
        ("gpt2", {"mlp": 0.25}),
        ("bloom", {"mlp": 0.25}),
        ("opt-350m", {"mlp": 0.25}),
        ("opt-125m", {"heads": 0.25}),
        ("gpt-oss", {"heads": 0.5}),
    ],
)
def test_widths_by_layer(family, cut, tmp_path):
    result = shrink_family(family, tmp_path, per_layer=True, **cut)
    if family in ("opt-125m", "gpt-oss"):  # code, or sinks, that take the number of heads from the config
        assert result is None
        return
    if "mlp" in cut:
        before, left = result.widths["channels"]
        assert sum(left) == len(left) * before - int(len(left) * before * cut["mlp"]) and min(left) >= 1
    if "heads" in cut:
        before, left = result.widths["kv_groups"]
        assert left == (before - int(before * cut["heads"]),) * len(left)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrink") / "out"
    return fw.shrink("demo", folder, mlp=0.5, heads=0.5, per_layer=True, calibration=CALIBRATION, device="cpu")


def test_uneven_widths_load_with_us_alone_and_multiply_less(uneven, narrower):
    assert not uneven.ordinary and narrower.ordinary and len(set(uneven.widths["channels"][1])) > 1
    model = fw.load(uneven.folder, device="cpu", dtype=torch.float32)
    layers = model.model.layers
    assert tuple(layer.mlp.down_proj.packed.shape[1] for layer in layers) == uneven.widths["channels"][1]
    assert tuple(layer.self_attn.k_proj.packed.shape[0] // 64 for layer in layers) == uneven.widths["kv_groups"][1]
    cache = model(input_ids=torch.arange(3, 9)[None], use_cache=True).past_key_values
    assert tuple(layer.keys.shape[1] for layer in cache.layers) == uneven.widths["kv_groups"][1]
    script = (
        "import sys, torch, featherweight\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(uneven.folder)!r})\n"
        "print(model.generate(torch.arange(3, 9)[None], max_new_tokens=3, do_sample=False).shape[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and int(done.stdout) == 9, done.stderr[-2000:]


def test_no_recipe_goes_on_from_uneven_widths(uneven):
    with pytest.raises(FeatherweightError, match="without --per-layer"):
        fw.plan(uneven.folder, "rtn-4bit")


class Killed(Exception):
    pass


def files(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("*")) if path.name not in ("shrink.json", "ledger.json")}


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_killed_run_goes_on_bit_identically(per_layer, tmp_path):
    def run(folder: Path, stage: str = "", after: int = 0):
        seen: dict[str, int] = {}

        def kill(event: Event) -> None:
            seen[event.stage] = seen.get(event.stage, 0) + 1
            if event.stage == stage and seen[stage] > after:
                raise Killed

        cut = {"mlp": 0.25, "heads": 0.5, "blocks": 1, "per_layer": per_layer}
        return fw.shrink("demo", folder, **cut, calibration=CALIBRATION, device="cpu", report=kill), seen

    _, seen = run(tmp_path / "whole")
    assert (seen["ranked"], seen["block written"]) == (4, 3)
    for stage, after in (("ranked", 1), ("block written", 0), ("block written", 0)):
        with pytest.raises(Killed):
            run(tmp_path / "out", stage, after)
        assert not (tmp_path / "out" / "config.json").exists()
    resumed, seen = run(tmp_path / "out")
    assert (seen.get("ranked"), seen["block written"], resumed.resumed) == (None, 1, 3)  # two blocks and what lies outside
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    again, seen = run(tmp_path / "out")
    assert "block written" not in seen and again.resumed == 4
    assert again.as_dict() | {"seconds": 0, "resumed": 0} == resumed.as_dict() | {"seconds": 0, "resumed": 0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "nothing to prune"),
        ({"mlp": 1.0}, "empty"),
        ({"heads": 1.0}, "empty"),
        ({"blocks": 4}, "empty"),
        ({"mlp": -0.1}, "below 0"),
        ({"blocks": -1}, "below 0"),
        ({"mlp": 0.001}, "makes up none"),
        ({"heads": 0.3}, "use --heads 0.5"),
        ({"blocks": 1, "per_layer": True}, "no widths to share"),
        ({"heads": 0.5, "per_layer": True, "head_unit": "query"}, "--head-unit group"),
    ],
)
def test_wrong_settings(settings, says, tmp_path):
    with pytest.raises(FeatherweightError, match=says):
        fw.shrink("demo", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_and_other_settings_are_refused(narrower, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(FeatherweightError, match="not empty"):
        fw.shrink("demo", tmp_path / "used", mlp=0.5, calibration=CALIBRATION)
    with pytest.raises(FeatherweightError, match=r"shrink\.mlp: 0\.25 there, 0\.5 now"):
        fw.shrink("demo", narrower.folder, mlp=0.5, calibration=CALIBRATION, device="cpu")
