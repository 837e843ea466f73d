"""Mixtures of experts through the whole house: statistics of each expert's tokens, packed, resumed, reloaded, exported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import featherweight as fw
from featherweight.api import export
from featherweight.cli import main as cli
from featherweight.decoding import why_not
from featherweight.engine.progress import Event
from featherweight.errors import FeatherweightError
from featherweight.packed.linear import PackedLinear

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import make_model, some_tokens

NEVER = 3  # the expert that no token is sent to
GPTQ = {"method": "gptq", "bits": 4, "group_size": 16}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpt-oss, which has everything: biases, transposed tensors, gates and ups in turn; one expert sees nothing."""
    folder = tmp_path_factory.mktemp("mixture")
    model = make_model("gpt-oss")
    for layer in model.model.layers:
        layer.mlp.router.bias[NEVER] = -1e4
    model.save_pretrained(folder / "model")
    np.save(folder / "tokens.npy", some_tokens(12, 32).numpy())
    return folder


def planned(mixture: Path, *steps: dict[str, Any], **engine: Any) -> Any:
    calibration = {"source": str(mixture / "tokens.npy"), "samples": 12, "length": 32}
    return fw.plan(mixture / "model", {"steps": list(steps), "calibration": calibration, "engine": engine})


def routed(rows: Any) -> dict[str, Any]:
    return {row.module: row.measured for row in rows if "calibrated_on" in row.measured}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=some_tokens(), use_cache=False).logits


def test_experts_that_see_too_little_are_calibrated_on_all_tokens(mixture: Path, tmp_path: Path) -> None:
    found, said = {}, list[Event]()
    for name, least in (("own", 0.0), ("usual", 1.0), ("again", 1.0), ("all", 1e9)):
        plan = planned(mixture, GPTQ, expert_tokens=least, keep_statistics="all", inputs="dense")
        result = fw.compress(plan, tmp_path / name, statistics=tmp_path / "kept", report=said.append)
        assert result.totals.file_bytes == plan.totals.file_bytes
        found[name] = routed(result.rows)
        assert len(found[name]) == 2 * 4 * 3
    ignored = {"seconds"}
    kept = [
        {name: {k: v for k, v in row.items() if k not in ignored} for name, row in found[run].items()}
        for run in ("usual", "again")
    ]
    assert kept[0] == kept[1] and sum(event.stage == "statistics reused" for event in said) == 2
    for name, row in found["usual"].items():
        size = 48 if name.endswith("down_proj") else 32
        starved = any(
            other["tokens"] < size for own, other in found["usual"].items() if own.rpartition(".")[0] == name.rpartition(".")[0]
        )
        assert starved or row["calibrated_on"] == "its own tokens"
    for run, expected in (("own", "its own tokens"), ("all", "all tokens")):
        assert {row["calibrated_on"] for name, row in found[run].items() if f".{NEVER}." not in name} == {expected}
    for name, row in found["own"].items():
        assert (row["tokens"] == 0) == (f".{NEVER}." in name) == (row["calibrated_on"] == "all tokens")
        assert row["tokens"] == found["all"][name]["tokens"]
    blocks = {name.split(".mlp")[0] for name in found["own"]}
    for block in blocks:  # two experts a token
        assert sum(row["tokens"] for name, row in found["own"].items() if name.startswith(block)) == 3 * 2 * 12 * 32
    assert any("experts saw" in event.detail for event in said)


def test_a_killed_run_goes_on_bit_for_bit(mixture: Path, tmp_path: Path) -> None:
    def killed(event: Event) -> None:
        if event.stage == "block written":
            raise KeyboardInterrupt

    plan = planned(mixture, GPTQ)
    whole = fw.compress(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fw.compress(plan, tmp_path / "killed", report=killed)
    assert fw.compress(plan, tmp_path / "killed").resumed == 2
    for shard in plan.shard_names():
        assert (tmp_path / "killed" / shard).read_bytes() == (whole.folder / shard).read_bytes()
    assert fw.verify(whole.folder)["proof"]["largest_difference"] < 1e-6


@pytest.mark.parametrize(
    "steps",
    [
        ({"method": "sparsegpt", "pattern": "2:4"}, GPTQ),
        ({"method": "quip"},),
        (GPTQ, {"method": "low-rank", "rank": 2}),
        ({"method": "spqr", "group_size": 16},),
    ],
    ids=lambda steps: "+".join(step["method"] for step in steps),
)
def test_methods_see_experts_as_linears(steps: Any, mixture: Path, tmp_path: Path) -> None:
    plan = planned(mixture, *steps)
    result = fw.compress(plan, tmp_path / "out")
    assert result.totals.file_bytes <= plan.totals.file_bytes
    measured = routed(result.rows)
    assert len(measured) == 2 * 4 * 3 and all(0 < row["relative_error"] < 0.5 for row in measured.values())
    model = fw.load(result.folder)
    for name in measured:
        assert isinstance(model.get_submodule(name), PackedLinear)
    assert "mixture of experts" in why_not(model)


def test_routers_stay_exact_and_what_is_saved_again_loads_again(mixture: Path, tmp_path: Path) -> None:
    result = fw.compress(planned(mixture, GPTQ), tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(mixture / "model").state_dict()
    assert sum(name.startswith("routing.") for name in load_file(result.folder / "probe.safetensors")) == 2 * 2
    model = fw.load(result.folder)
    routers = [name for name in before if ".router." in name]
    assert len(routers) == 4 and all(torch.equal(model.state_dict()[name], before[name]) for name in routers)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(fw.load(tmp_path / "saved")), logits(model))


def test_dense_values_go_back_into_fused_tensors_and_no_other_format_is_written(mixture: Path, tmp_path: Path) -> None:
    result = fw.compress(planned(mixture, {"method": "rtn", "bits": 8, "group_size": 16}), tmp_path / "out")
    export(result.folder, "dense", tmp_path / "dense")
    stored = {name for path in (tmp_path / "dense").glob("*.safetensors") for name in load_file(path)}
    assert stored == set(load_file(mixture / "model" / "model.safetensors"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(fw.load(result.folder)), rtol=0, atol=1e-5)
    with pytest.raises(FeatherweightError, match="a mixture of experts"):
        export(result.folder, "vllm", tmp_path / "vllm")


def test_a_config_alone_is_planned_but_not_compressed(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fw", *words])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        return capsys.readouterr().out

    (tmp_path / "told").mkdir()
    shutil.copyfile(mixture / "model" / "config.json", tmp_path / "told" / "config.json")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"steps": [{"method": "rtn", "bits": 4, "group_size": 16}]}))
    told = json.loads(run("plan", str(tmp_path / "told"), "-r", str(recipe), "--json"))
    assert told["total"]["file_bytes"] == fw.plan(mixture / "model", recipe).totals.file_bytes
    assert "experts.*.up_proj (4)" in run("plan", str(tmp_path / "told"), "-r", str(recipe))
    with pytest.raises(FeatherweightError, match="no model weights"):
        fw.plan(tmp_path / "told", recipe)
