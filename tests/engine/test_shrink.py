"""Ordinary checkpoints with fewer channels and blocks: equal to the masked model, loaded by plain transformers, compressed on."""

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
from featherweight.errors import FeatherweightError

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
    assert (parameters, width) == (narrower.parameters[1], 576) and narrower.channels == (768, 576)
    assert narrower.parameters[0] - parameters == 4 * 3 * 192 * 256
    assert json.loads((narrower.folder / "shrink.json").read_text())["parameters"] == list(narrower.parameters)


@pytest.mark.parametrize("model", ["demo", str(OPT)])
def test_without_repair_it_equals_the_model_whose_channels_are_zero(model, tmp_path):
    result = fw.shrink(model, tmp_path / "out", mlp=0.5, repair=False, calibration=CALIBRATION, device="cpu")
    dense, small = fw.load(model, device="cpu", dtype=torch.float32), fw.load(result.folder, device="cpu", dtype=torch.float32)
    for name, module in dense.named_modules():
        if name.endswith(("down_proj", "fc2")):
            left = small.get_submodule(name).weight
            same = (module.weight[:, :, None] == left[:, None, :]).all(0)  # which old column each new one is
            assert int(same.any(1).sum()) == left.shape[1] == module.weight.shape[1] // 2
            module.weight.data[:, ~same.any(1)] = 0.0
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=tokens).logits, dense(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_repair_helps(tmp_path):
    perplexities = []
    for repair in (True, False):
        calibration = {"samples": 24, "length": 256}  # several tokens a channel
        made = fw.shrink("demo", tmp_path / str(repair), mlp=0.25, repair=repair, calibration=calibration, device="cpu")
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


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_shrink_or_say_why_not(family, tmp_path):
    save_model(family, tmp_path / "model")
    np.save(tmp_path / "tokens.npy", some_tokens(8, 32).numpy())
    calibration = {"source": str(tmp_path / "tokens.npy"), "samples": 8, "length": 32}
    try:
        result = fw.shrink(tmp_path / "model", tmp_path / "out", mlp=0.25, blocks=1, calibration=calibration, device="cpu")
    except FeatherweightError as problem:
        assert problem.fix and not (tmp_path / "out").exists()
        assert family in UNABLE, str(problem)
    else:
        assert result.largest_difference < 1e-5 and result.parameters[1] < result.parameters[0] and family not in UNABLE


#: Channels that lie inside experts; Bloom's MLP is always four times as wide as its hidden states.
UNABLE = {"mixtral", "qwen3-moe", "gpt-oss", "bloom"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [({}, "nothing to prune"), ({"mlp": 1.0}, "empty"), ({"blocks": 4}, "empty"), ({"mlp": -0.1}, "empty")],
)
def test_wrong_settings(settings, says, tmp_path):
    with pytest.raises(FeatherweightError, match=says):
        fw.shrink("demo", tmp_path / "out", **settings)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(FeatherweightError, match="in use"):
        fw.shrink("demo", tmp_path / "used", mlp=0.5)
