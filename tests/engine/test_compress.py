"""The whole path on the embedded model: predicted bytes, proof, reuse, resume, refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import featherweight as fw
from common import OPT, SMALL, TINY
from featherweight import FeatherweightError
from featherweight.engine.progress import Event
from featherweight.packed.files import sha256
from featherweight.planning.recipe import load_recipe, shipped_recipes


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("model-*.safetensors"))}


#: Of the other family one recipe for each way of storing.
STORAGES = (
    "caldera-2bit",
    "fastllama-8bit-output",
    "awq-4bit",
    "gptq-3bit-g128",
    "gptq-nvfp4",
    "joint-2of4-4bit",
    "pqp-50-4bit-row",
    "quip-3bit",
    "rtn-8bit",
    "sparsegpt-50",
    "spqr-3bit",
)


@pytest.mark.parametrize(
    ("model", "recipe"), [*(("demo", name) for name in sorted(shipped_recipes())), *((str(OPT), name) for name in STORAGES)]
)
def test_predicted_bytes_are_the_files_bytes(model: str, recipe: str, tmp_path: Path) -> None:
    searching = {  # bytes do not depend on it
        "alps": {"iterations": 3, "refit": 2},
        "bawa": {"steps": 1, "batches": 1},
        "besa": {"epochs": 1},
        "caldera": {"iterations": 1, "passes": 0, "factor_iterations": 0, "downdate": 0},
        "decompose": {"iterations": 1, "factor_iterations": 0},
        "lplr": {"factor_iterations": 0},
        "quip": {"passes": 1},
    }
    steps = enumerate(load_recipe(recipe).steps)
    quick = {f"steps.{i}.{name}": value for i, step in steps for name, value in searching.get(step.method, {}).items()}
    if recipe == "caldera-paper-2bit":
        quick["steps.0.rank"] = 64  # its own exceeds the demo model's linears
    one_block = {"overrides": [{"match": "*.layers.[1-9].*", "skip": True}]}  # the others are stored alike
    plan = fw.plan(model, recipe, changes={**TINY, **quick, **one_block})
    result = fw.compress(plan, tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("model-*.safetensors"))
    bounded = any(row.at_most or row.shared for row in plan.rows)
    assert size <= plan.totals.file_bytes if bounded else size == plan.totals.file_bytes
    for planned, measured in zip(plan.rows, result.rows, strict=True):
        exact = planned.predicted_bytes == measured.bytes or (planned.at_most and measured.bytes < planned.predicted_bytes)
        assert exact or planned.shared
    shared = [(row, found) for row, found in zip(plan.rows, result.rows, strict=True) if row.shared]
    assert sum(row.predicted_bytes for row, _ in shared) == sum(row.bytes for _, row in shared)
    in_parts = ("sum(", "rotated", "low_rank")  # they multiply step by step
    assert result.proof["identical"] or any(word in row.storage for row in plan.rows for word in in_parts)


def test_every_parameter_is_in_the_ledger(gptq_run) -> None:
    _, result = gptq_run
    ledger = json.loads((result.folder / "ledger.json").read_text())
    stored = {name for path in result.folder.glob("model-*.safetensors") for name in load_file(path)}
    rows = {row["module"]: row for row in ledger["rows"]}
    assert all(any(name == module or name.startswith(module + ".") for module in rows) for name in stored)
    assert all(row["reason"] for row in ledger["rows"] if row["method"] is None)
    compressed = [row for row in ledger["rows"] if row["method"]]
    assert len(compressed) == 4 * 7
    assert all(0 < row["relative_error"] < 0.1 and row["seconds"] >= 0 and row["damping"] > 0 for row in compressed)


def test_second_method_reads_no_tokens_for_the_first_block(tmp_path: Path) -> None:
    store = tmp_path / "statistics"
    seen: list[Event] = []
    fw.compress(fw.plan("demo", "gptq-4bit", changes=SMALL), tmp_path / "a", statistics=store)
    fw.compress(fw.plan("demo", "gptq-3bit-g128", changes=SMALL), tmp_path / "b", statistics=store, report=seen.append)
    reused = [event.block for event in seen if event.stage == "statistics reused"]
    gathered = {event.block for event in seen if event.stage == "gather"}
    assert reused == ["model.layers.0"]
    assert gathered == {f"model.layers.{index}" for index in (1, 2, 3)}


def test_reused_statistics_change_nothing(tmp_path: Path, gptq_run) -> None:
    _, result = gptq_run
    store = tmp_path / "statistics"
    for name in ("a", "b"):
        fw.compress(fw.plan("demo", "gptq-4bit", changes=SMALL), tmp_path / name, statistics=store)
        assert shards(tmp_path / name) == shards(result.folder)


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_killed_run_goes_on_bit_identically(stop_after: int, tmp_path: Path, gptq_run) -> None:
    plan, whole = gptq_run
    written = 0

    def kill(event: Event) -> None:
        nonlocal written
        written += event.stage == "block written"
        if event.stage == "compressed" and written == stop_after:
            raise Killed

    with pytest.raises(Killed):
        fw.compress(plan, tmp_path / "out", report=kill)
    assert not (tmp_path / "out" / "config.json").exists()
    resumed = fw.compress(plan, tmp_path / "out")
    assert resumed.resumed == stop_after + 1
    assert shards(tmp_path / "out") == shards(whole.folder)


def test_finished_output_is_left_as_it_is(gptq_run) -> None:
    plan, whole = gptq_run
    before = shards(whole.folder)
    again = fw.compress(plan, whole.folder)
    assert again.resumed == len(before) and shards(whole.folder) == before


def test_other_settings_on_resume_are_refused_by_name(gptq_run) -> None:
    _, whole = gptq_run
    other = fw.plan("demo", "gptq-4bit", changes={**SMALL, "steps.0.bits": 3, "calibration.seed": 1})
    with pytest.raises(FeatherweightError) as problem:
        fw.compress(other, whole.folder)
    assert "recipe.steps.0.bits: 4 there, 3 now" in str(problem.value)
    assert "recipe.calibration.seed" in str(problem.value)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FeatherweightError, match="not empty"):
        fw.compress(fw.plan("demo", "rtn-4bit"), tmp_path)


def test_a_tampered_shard_is_found(tmp_path: Path) -> None:
    fw.compress(fw.plan("demo", "rtn-4bit"), tmp_path / "out")
    shard = tmp_path / "out" / "model-00002-of-00005.safetensors"
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("codes"))
    tensors[name][0, 0] ^= 1
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(FeatherweightError, match="changed after it was written"):
        fw.verify(tmp_path / "out")


def test_true_sequential_and_dense_inputs_run_and_differ(tmp_path: Path, gptq_run) -> None:
    _, whole = gptq_run
    for name, change in (("sequential", {"engine.true_sequential": True}), ("dense", {"engine.inputs": "dense"})):
        result = fw.compress(fw.plan("demo", "gptq-4bit", changes={**SMALL, **change}), tmp_path / name)
        assert result.proof["identical"]
        assert shards(result.folder) != shards(whole.folder)


def test_embedding_and_tied_head_are_compressed_together(tmp_path: Path) -> None:
    plan = fw.plan("demo", "rtn-4bit", changes={"embedding": {"method": "rtn", "bits": 8, "group_size": 64}})
    row = next(row for row in plan.rows if row.kind == "embedding")
    assert "lm_head" in row.reason
    result = fw.compress(plan, tmp_path / "out")
    assert result.proof["identical"] and fw.verify(tmp_path / "out")["proof"]["identical"]
    assert result.totals.file_bytes < 3_700_000


def test_saved_model_must_repeat_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.engine import save

    real = save.reload_logits
    monkeypatch.setattr(save, "reload_logits", lambda *arguments: real(*arguments) + 1.0)
    with pytest.raises(FeatherweightError, match="does not repeat"):
        fw.compress(fw.plan("demo", "rtn-4bit"), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_transformers_loads_it(gptq_run) -> None:
    from transformers import AutoModelForCausalLM

    _, result = gptq_run
    tokens = torch.arange(1, 33).unsqueeze(0)
    ours = fw.load(result.folder, dtype=torch.float32)(input_ids=tokens).logits
    theirs = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.float32)(input_ids=tokens).logits
    assert torch.equal(ours, theirs)
