"""Every family of decoder goes the whole way: planned bytes, compressed, saved, reloaded by transformers, equal logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import featherweight as fw

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import EXPERTS, FAMILIES, save_model, some_tokens


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_goes_the_whole_way(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path / "model")
    np.save(tmp_path / "tokens.npy", some_tokens(12, 32).numpy())
    recipe = {
        "steps": [{"method": "gptq", "bits": 4, "group_size": 16, "scope": "all"}],
        "calibration": {"source": str(tmp_path / "tokens.npy"), "samples": 12, "length": 32},
    }
    plan = fw.plan(tmp_path / "model", recipe)
    assert plan.rows[-1].kind == "head" and plan.untied == plan.structure.tied
    result = fw.compress(plan, tmp_path / "out")
    assert result.proof["identical"] or family in EXPERTS  # of few tokens an expert makes the product by another kernel
    assert result.totals.file_bytes == plan.totals.file_bytes
    assert sum(row.kind == "linear" for row in result.rows) >= 2 * 2
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    routed = [row for row in ledger["rows"] if "calibrated_on" in row]
    assert len(routed) == (2 * 4 * 3 if family in EXPERTS else 0)
    assert all(row["reason"] for row in ledger["rows"] if row["method"] is None)


@pytest.mark.parametrize("family", ["opt-350m", "gemma3", "falcon-7b", "llama-tied-bias"])
def test_embedding_and_head_of_families(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path / "model")
    eight = {"method": "rtn", "bits": 8, "group_size": 16}
    plan = fw.plan(tmp_path / "model", {"steps": [{"method": "rtn", "group_size": 16}], "embedding": eight, "head": eight})
    assert fw.compress(plan, tmp_path / "out").proof["identical"]


@pytest.mark.parametrize("family", ["gpt2", "opt-350m", "phi3", "qwen3-moe"])
def test_ratios_are_learned_in_any_family(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path / "model")
    np.save(tmp_path / "tokens.npy", some_tokens(12, 32).numpy())
    recipe = {
        "steps": [{"method": "besa", "epochs": 2}, {"method": "repair"}, {"method": "gptq", "group_size": 16}],
        "calibration": {"source": str(tmp_path / "tokens.npy"), "samples": 12, "length": 32, "batch_size": 2},
    }
    result = fw.compress(fw.plan(tmp_path / "model", recipe), tmp_path / "out")
    assert result.proof["identical"]
    compressed = [row.measured for row in result.rows if row.chain]
    assert all(measured["block_loss"] < 0.97 * measured["block_loss_even"] for measured in compressed)
