"""Several processes train as one, and lower precision trains nearly as well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from common import TINY
from featherweight.api import finetune
from featherweight.finetune.settings import Settings
from featherweight.models.source import resolve_model

QUICK = Settings(task="distill", train=("norms",), length=48, samples=11, held_out=3, batch_size=5, every=2, learning_rate=5e-3)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "out"
    fw.compress(fw.plan("demo", "rtn-4bit", changes={**TINY, "steps.0.bits": 2}), folder)
    return folder


@pytest.fixture(scope="module")
def alone(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(output, tmp_path_factory.mktemp("tuned") / "out", QUICK, teacher=resolve_model("demo"), device="cpu").folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in sorted(folder.glob("model*.safetensors")) for name, each in load_file(path).items()}


def test_two_processes_give_what_one_gives(output: Path, alone: Path, tmp_path: Path) -> None:
    """Batches of 5 windows and one of 1, shared by two: unequal parts, and an empty one."""
    words = [str(output), "-o", str(tmp_path / "out"), "--task", "distill", "--teacher", "demo", "--device", "cpu", "--json"]
    for name in ("length", "samples", "held_out", "batch_size", "every", "learning_rate"):
        words += [f"--{name.replace('_', '-')}", str(getattr(QUICK, name))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "featherweight", "finetune", *words, "--train", "norms"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    one = json.loads((alone / "ledger.json").read_text())["finetune"]
    assert told["processes"] == 2 and one["processes"] == 1, "one object: one process prints"
    assert told["history"][-1]["held_out_loss"] == pytest.approx(one["history"][-1]["held_out_loss"], rel=1e-4)
    ours, theirs = tensors(tmp_path / "out"), tensors(alone)
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name].float(), each.float(), rtol=1e-2, atol=1e-4)
    fw.verify(tmp_path / "out")


def test_lower_precision_learns_nearly_as_much(output: Path, alone: Path, tmp_path: Path) -> None:
    settings = Settings(**{**QUICK.as_dict(), "train": QUICK.train, "precision": "bfloat16"})
    told = finetune(output, tmp_path / "out", settings, teacher=resolve_model("demo"), device="cpu").told
    full = json.loads((alone / "ledger.json").read_text())["finetune"]
    assert told["before"] == pytest.approx(full["before"], rel=0.05) and told["before"] != full["before"]
    gained, most = told["before"] - told["after"], full["before"] - full["after"]
    assert most > 0 and gained > 0.7 * most
    fw.verify(tmp_path / "out")
