"""`finetune`: from an output to a new one with what stays free trained."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.engine.journal import Journal
from featherweight.engine.save import LEDGER, read_ledger
from featherweight.engine.verify import PROBE
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, fingerprint, vocabulary_of
from featherweight.finetune.examples import answered
from featherweight.finetune.free import free_parameters, put, store_anew, taken
from featherweight.finetune.material import Material, gather
from featherweight.finetune.objective import Precision, autocast, objective
from featherweight.finetune.processes import Processes
from featherweight.finetune.save import finish, grown, write_shards
from featherweight.finetune.settings import Settings
from featherweight.finetune.training import CHECKPOINT, Report, State, Training
from featherweight.integrations.load import load, read_modules
from featherweight.models.source import ModelSource
from featherweight.packed.linear import dense_cache
from featherweight.reports.card import write_card


@dataclass(frozen=True)
class Tuned:
    """A finished fine-tuning.

    Attributes:
        folder: the new output.
        told: the ledger's section `finetune`: settings, data, trained parameters and their share, losses, accuracy, seconds.
        proof: of the reload.
    """

    folder: Path
    told: dict[str, Any]
    proof: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Tuned:
        """That of a finished folder."""
        ledger = read_ledger(folder)
        return cls(folder, ledger["finetune"], ledger["proof"])

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {"output": str(self.folder), **self.told, "proof": self.proof}


def finetune(
    source: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    data: str | None = None,
    validation: str | None = None,
    teacher: ModelSource | None = None,
    device: str | None = None,
    offline: bool = False,
    note: Callable[[str], None] = lambda line: None,
    report: Report = lambda *told: None,
) -> Tuned:
    """Train norms, dense low-rank factors and sign vectors of the output `source` into the new folder `output`.

    What is trained is held in float32, with every frozen weight decoded once. The state with the lowest held-out loss is kept;
    the same call after a crash goes on from the last checkpoint. Of several processes (`accelerate launch`, `torchrun`) each
    takes its share of every batch, and the first one writes.

    Args:
        data: a text as `load_corpus` takes it, of its calibration split; for a task what `load_examples` takes. None for the
            shipped text, or the hub.
        validation: of a task, the file of its validation split where `data` is a file.
        teacher: the dense model, with `settings.task` "distill".
        note: told what is trained and what it costs before training.

    Raises:
        FeatherweightError: no finished output, nothing free, a text too short, a folder in use, a teacher missing or of
            another vocabulary.
    """
    started = time.perf_counter()
    source, folder, processes = Path(source), Path(output), Processes(device)
    ledger, place = read_ledger(source), processes.device
    model, guide = _models(source, teacher, settings, place)
    material = gather(ModelSource(str(source), source), settings, data, validation, offline=offline)
    identity = {
        "finetune": settings.as_dict(), "data": material.sha256, "teacher": fingerprint(guide) if guide else None,
        "output": hashlib.sha256(json.dumps(ledger["files"]).encode()).hexdigest(), "device": place.type,
    }  # fmt: skip
    changed = store_anew(model, settings)
    free = free_parameters(model, settings)
    journal = Journal.open(folder, identity) if processes.writes else None
    processes.wait()
    if (folder / LEDGER).is_file():  # only a finished run has one
        return Tuned.read(folder)
    counted = _counted(free, ledger, grown(read_modules(source), changed))
    if processes.writes:
        _announce(counted, len(changed), note)
    precision = autocast(place, getattr(torch, settings.precision))
    loss = objective(model, guide, examples=settings.has_examples, precision=precision)
    training = Training(free, loss, material.train, material.held_out, settings, folder, processes)
    with dense_cache(model, getattr(torch, settings.precision)):
        first = _share_right(model, material, training, precision)
        state = training.run(report)
        put(free, state.best)
        if journal is not None:
            write_shards(source, folder, journal, changed, taken(free))
        processes.wait()
        put(free, _as_stored(folder, free, place))
        after, last = training.measure(), _share_right(model, material, training, precision)
    if journal is not None:
        told = _record(settings, teacher, processes.count, material, started) | counted | _losses(state, after)
        told["accuracy"] = None if first is None else {"before": first, "after": last}
        finish(source, folder, journal, changed, _probe(model, source, place), told, place)
        write_card(folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    processes.wait()
    return Tuned.read(folder)


@torch.no_grad()
def _share_right(model: Any, material: Material, training: Training, precision: Precision) -> float | None:
    """Share of the validation questions that are answered rightly; None of a text."""
    if material.questions is None:
        return None
    right = torch.zeros((), dtype=torch.int64, device=training.processes.device)
    for part in training.processes.share(material.questions).split(training.settings.batch_size):
        with precision():
            right += answered(model, part.to(right.device))
    return int(training.processes.sum(right)) / len(material.questions)


def _models(source: Path, teacher: ModelSource | None, settings: Settings, device: torch.device) -> tuple[Any, Any | None]:
    """The output's model and the teacher's, in float32, once they fit the settings and each other."""
    if (settings.task == "distill") != (teacher is not None):
        raise FeatherweightError(
            "distillation needs a teacher, and nothing else does",
            found=f"--task {settings.task}, {f'--teacher {teacher.name}' if teacher else 'no --teacher'}",
            expected="--task distill --teacher DENSE, or another task",
        )
    model = load(source, device=str(device), dtype=torch.float32)
    guide = load(teacher.folder, device=str(device), dtype=torch.float32) if teacher else None
    _check(model, guide, settings)
    return model, guide


def _announce(counted: dict[str, Any], changed: int, note: Callable[[str], None]) -> None:
    """What is trained, and what it costs, before it is begun."""
    note(f"trains {counted['trained']:,} parameters in {counted['tensors']} tensors, {counted['share']:.4%} of the model's")
    if changed:
        note(f"{changed} linears get parts in 16 bits: weights grow by {counted['grown_bytes']:,} bytes")


@torch.no_grad()
def _probe(model: Any, source: Path, device: torch.device) -> Tensor:
    """Logits of the tokens that the output was proven on."""
    tokens = load_file(source / PROBE)["tokens"].to(device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits.float().cpu()
    return logits


def _check(model: Any, teacher: Any | None, settings: Settings) -> None:
    context = context_of(model)
    if context is not None and settings.length > context:
        raise FeatherweightError(
            "the window is longer than the model's context", found=settings.length, expected=f"at most {context} tokens"
        )
    if teacher is not None and vocabulary_of(teacher) != vocabulary_of(model):
        raise FeatherweightError(
            "the teacher has another vocabulary", found=vocabulary_of(teacher), expected=vocabulary_of(model),
            fix="name the dense model that the output was made from",
        )  # fmt: skip


def _as_stored(folder: Path, free: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The free parameters as the new files hold them."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("model*.safetensors"):
        tensors = load_file(path)
        found |= {name: tensors[name][: len(free[name])].float().to(device) for name in free.keys() & tensors.keys()}
    return found


def _counted(free: dict[str, Any], ledger: dict[str, Any], extra: int) -> dict[str, Any]:
    trained = sum(parameter.numel() for parameter in free.values())
    return {
        "trained": trained, "tensors": len(free),
        "share": trained / sum(torch.Size(row["shape"]).numel() for row in ledger["rows"]), "grown_bytes": extra,
    }  # fmt: skip


def _record(
    settings: Settings, teacher: ModelSource | None, processes: int, material: Material, started: float
) -> dict[str, Any]:
    """By what, on what and by how many was trained, and the seconds since it began."""
    counts = {"trained_on": len(material.train), "held_out": len(material.held_out)}
    return {
        "settings": settings.as_dict(), "teacher": teacher.name if teacher else None, "processes": processes,
        "data": {**material.description, "sha256": material.sha256, **counts}, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _losses(state: State, after: float) -> dict[str, Any]:
    """Held-out losses before, and after as stored; every measurement between."""
    names = ("step", "training_loss", "held_out_loss")
    history = [dict(zip(names, row, strict=True)) for row in state.history]
    history[0]["training_loss"] = None  # type: ignore[assignment]
    return {
        "before": state.history[0][2], "after": after, "best_step": state.best_step, "steps": state.step,
        "stopped": state.stopped, "history": history,
    }  # fmt: skip
