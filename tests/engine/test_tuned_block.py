"""Blocks tuned while they are rounded: in a whole run, as planned; their vectors can be trained further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import featherweight as fw
from common import TINY
from featherweight.api import finetune
from featherweight.engine.progress import Event
from featherweight.finetune.settings import Settings

QUICK = {**TINY, "steps.0.passes": 0, "steps.0.scope": "model.layers.0.self_attn.*"}


def test_a_tuned_run_is_as_planned_and_its_signs_go_on_in_fine_tuning(tmp_path: Path) -> None:
    bits = []
    for name, changes in (("plain", {}), ("tuned", {"steps.0.tune_block": 8, "steps.0.tune_signs": True})):
        plan = fw.plan("demo", "quip-2bit", changes={**QUICK, **changes})
        fw.compress(plan, tmp_path / name)
        ledger = json.loads((tmp_path / name / "ledger.json").read_text())
        bits.append(ledger["total"]["linear_bits"])
        rows = [row for row in ledger["rows"] if row["method"]]
        assert len(rows) == 4 and all(row["stored_bytes"] == row["predicted_bytes"] for row in rows)
        gains = {row["measured"].get("tuning_gain") if "measured" in row else row.get("tuning_gain") for row in rows}
        assert (gains == {None}) if name == "plain" else min(gains) > 0, gains
        norms = {row.module: row.kind for row in plan.rows if row.module.endswith("layernorm.weight")}
        dense = plan.weights.read(next(iter(norms)))
        trained = not torch.equal(dense, fw.load(tmp_path / name).get_parameter(next(iter(norms))).to(dense.dtype))
        assert (next(iter(norms.values())), trained) == (("tuned", True) if name == "tuned" else ("parameter", False))
    assert bits[1] > bits[0]
    settings = Settings(task="lm", train=("outputs",), length=32, samples=4, held_out=2)
    assert finetune(tmp_path / "tuned", tmp_path / "further", settings, device="cpu").told["grown_bytes"] == 0
    fw.verify(tmp_path / "further")


def test_a_killed_run_goes_on_with_the_norms_that_were_trained(tmp_path: Path) -> None:
    scope = ["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.k_proj"]
    plan = fw.plan("demo", "quip-2bit", changes={**QUICK, "steps.0.scope": scope, "steps.0.tune_block": 4})

    def kill(event: Event) -> None:
        if event.stage == "block written":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fw.compress(plan, tmp_path / "killed", report=kill)
    whole, resumed = fw.compress(plan, tmp_path / "whole"), fw.compress(plan, tmp_path / "killed")
    assert resumed.resumed == 2
    for shard in whole.folder.glob("*.safetensors"):
        assert shard.read_bytes() == (resumed.folder / shard.name).read_bytes(), shard.name
