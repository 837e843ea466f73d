"""Fine-tuned outputs: what changes, what does not, whether it helps, whether a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from common import OPT, TINY
from featherweight.api import finetune
from featherweight.cli import main as cli
from featherweight.engine.journal import Journal
from featherweight.errors import FeatherweightError
from featherweight.finetune import training
from featherweight.finetune.settings import Settings
from featherweight.finetune.training import rate
from featherweight.models.source import resolve_model

#: Rounded hard, with a low-rank term in 16 bits; no calibration data.
RECIPE = {
    "name": "two bits and a low-rank term",
    "steps": [
        {"method": "rtn", "bits": 2, "group_size": 64},
        {"method": "low-rank", "rank": 4, "left_bits": 16, "right_bits": 4, "activation_aware": False},
    ],
}
QUICK = Settings(task="distill", length=48, samples=16, held_out=4, batch_size=4, every=2, learning_rate=3e-3)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "out"
    fw.compress(fw.plan("demo", RECIPE, changes=TINY), folder)
    return folder


@pytest.fixture(scope="module")
def tuned(output: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("tuned") / "out"
    return folder, distill(output, folder).told


def distill(output: Path, folder: Path, settings: Settings = QUICK):
    return finetune(output, folder, settings, teacher=resolve_model("demo"), device="cpu")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in sorted(folder.glob("model*.safetensors")) for name, each in load_file(path).items()}


def test_distillation_lowers_the_divergence_also_on_another_text(output: Path, tuned: tuple[Path, dict]) -> None:
    folder, told = tuned
    assert told["after"] < 0.97 * told["before"]
    assert told["after"] == pytest.approx(min(row["held_out_loss"] for row in told["history"]), rel=0.02)
    before, after = (fw.evaluate(each, "heldout", against="demo", length=64, windows=8)[0] for each in (output, folder))
    assert before.name == "kl" and after.value < before.value


def test_only_what_is_free_changes(output: Path, tuned: tuple[Path, dict]) -> None:
    folder, told = tuned
    before, after = tensors(output), tensors(folder)
    assert before.keys() == after.keys(), "norms and embeddings are in the new files too"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    free = {name for name in before if "norm" in name or name.endswith("left_values")}
    assert changed <= free and len(changed) > 0.8 * len(free)
    assert any("norm" in name for name in changed) and any(name.endswith("left_values") for name in changed)
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert told["trained"] == sum(before[name].numel() for name in free) and told["tensors"] == len(free)
    assert told["share"] == told["trained"] / sum(torch.Size(row["shape"]).numel() for row in _ledger(folder)["rows"])


def test_the_new_output_is_whole_and_the_old_one_as_it_was(output: Path, tuned: tuple[Path, dict]) -> None:
    folder, told = tuned
    fw.verify(folder)
    fw.verify(output)
    old, new = _ledger(output), _ledger(folder)
    assert new["rows"] == old["rows"] and new["recipe"] == old["recipe"] and new["finetune"] == told
    assert new["total"] == old["total"], "nothing was stored anew"
    assert not list(folder.glob("*checkpoint*")) and (folder / "README.md").is_file()


@pytest.mark.parametrize("failing", ["between checkpoints", "while files are written"])
def test_a_killed_run_goes_on_bit_for_bit(
    output: Path, tuned: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def die(step: int, *rest: float) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return rate(step, *rest)

    with monkeypatch.context() as patch:
        if failing == "between checkpoints":
            patch.setattr(training, "rate", die)
        else:
            patch.setattr(Journal, "add", lambda *_: die(3))
        with pytest.raises(KeyboardInterrupt):
            distill(output, tmp_path / "out")
    assert (tmp_path / "out" / training.CHECKPOINT).is_file() and not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(FeatherweightError, match="other settings"):
        distill(output, tmp_path / "out", Settings(**{**QUICK.as_dict(), "learning_rate": 1e-3, "train": QUICK.train}))
    told = distill(output, tmp_path / "out").told
    assert {**told, "seconds": 0} == {**tuned[1], "seconds": 0}
    ours, theirs = tensors(tmp_path / "out"), tensors(tuned[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_loss_that_is_not_finite_stops_and_the_best_state_is_kept(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "rate", lambda step, *_: 1.0 if step < 2 else float("inf"))
    settings = Settings(**{**QUICK.as_dict(), "train": ("norms",)})
    told = finetune(output, tmp_path / "out", settings, teacher=resolve_model("demo"), device="cpu").told
    assert "nan" in told["stopped"] and told["steps"] < 4 and told["best_step"] == 2 and told["after"] < told["before"]
    assert all(bool(each.isfinite().all()) for each in tensors(tmp_path / "out").values() if each.is_floating_point())
    fw.verify(tmp_path / "out")


def test_leading_ranks_of_rounded_factors_are_stored_anew(output: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = Settings(task="lm", train=("factors",), rank=2, length=48, samples=8, held_out=2, learning_rate=1e-3)
    told = finetune(output, tmp_path / "out", settings, device="cpu", note=said.append).told
    assert any(f"grow by {told['grown_bytes']:,} bytes" in line for line in said)
    old, new = _ledger(output), _ledger(tmp_path / "out")
    assert new["total"]["predicted_bytes"] - old["total"]["predicted_bytes"] == told["grown_bytes"] > 0
    assert new["total"]["file_bytes"] == fw.verify(tmp_path / "out")["bytes"]
    before, after = tensors(output), tensors(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys() if "values" not in name)
    assert told["trained"] == sum(2 * sum(row["shape"]) for row in new["rows"] if row["method"])


def test_norms_of_another_family_have_weights_and_biases(tmp_path: Path) -> None:
    fw.compress(fw.plan(OPT, "rtn-4bit", changes=TINY), tmp_path / "opt")
    settings = Settings(length=32, samples=8, held_out=2, learning_rate=3e-3)
    told = finetune(tmp_path / "opt", tmp_path / "tuned", settings, device="cpu").told
    before, after = tensors(tmp_path / "opt"), tensors(tmp_path / "tuned")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("norm" in name for name in changed) and told["tensors"] == sum("norm" in name for name in before)
    assert any(name.endswith("bias") for name in changed) and told["after"] < told["before"]


def test_wrong_input_is_refused_before_anything_is_written(output: Path, tmp_path: Path) -> None:
    wrong = [
        (lambda: Settings(train=("embeddings",)), "unknown --train"),
        (lambda: Settings(learning_rate=0.0), "learning_rate"),
        (lambda: Settings(train=("norms",), rank=2), "a rank without factors"),
        (lambda: finetune(output, tmp_path / "out", Settings(task="distill")), "needs a teacher"),
        (lambda: finetune(output, tmp_path / "out", Settings(length=100_000)), "longer than the model's context"),
        (lambda: finetune(output, tmp_path / "out", Settings(samples=10**6)), "too short"),
        (lambda: finetune(tmp_path / "none", tmp_path / "out", Settings()), "no ledger"),
        (lambda: finetune(output, output, Settings()), "other settings"),
    ]
    for call, message in wrong:
        with pytest.raises(FeatherweightError, match=message):
            call()
    assert not (tmp_path / "out").exists()


def test_the_rate_rises_and_falls_linearly() -> None:
    rates = [rate(step, 10, 0.2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(1 / 8) and rates[2:] == sorted(rates[2:], reverse=True)


def test_the_verb_prints_one_json_object(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--train", "norms", "--length", "32", "--samples", "4", "--held-out", "2", "--device", "cpu", "--json"]
    monkeypatch.setattr("sys.argv", ["fw", "finetune", str(output), "-o", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = json.loads(capsys.readouterr().out)
    assert left.value.code == 0 and told["output"] == str(tmp_path / "out") and told["settings"]["train"] == ["norms"]
    assert told["steps"] == 1 and told["data"]["trained_on"] == 4 and told["proof"]["largest_difference"] < 1e-4


def _ledger(folder: Path) -> dict:
    return json.loads((folder / "ledger.json").read_text())
