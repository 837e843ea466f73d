"""`finetune`: from an output to a new one with what stays free trained."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.data.corpora import load_corpus
from featherweight.data.windows import Windows, calibration_windows, evaluation_windows
from featherweight.engine.compress import pick_device
from featherweight.engine.journal import Journal
from featherweight.engine.save import LEDGER, read_ledger
from featherweight.engine.verify import PROBE
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, fingerprint, vocabulary_of
from featherweight.finetune.free import free_parameters, put, restore_ranks, taken
from featherweight.finetune.objective import objective
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
        told: the ledger's section `finetune`: settings, text, trained parameters and their share, losses, seconds.
        proof: of the reload.
    """

    folder: Path
    told: dict[str, Any]
    proof: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {"output": str(self.folder), **self.told, "proof": self.proof}


def finetune(
    source: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    data: str = "calibration",
    teacher: ModelSource | None = None,
    device: str | None = None,
    offline: bool = False,
    note: Callable[[str], None] = lambda line: None,
    report: Report = lambda *told: None,
) -> Tuned:
    """Train the norms and dense low-rank factors of the output `source` into the new folder `output`.

    Runs in float32 with every frozen weight decoded once. The state with the lowest held-out loss is kept; the same call
    after a crash goes on from the last checkpoint.

    Args:
        data: a text as `load_corpus` takes it, of its calibration split.
        teacher: the dense model, with `settings.task` "distill".
        note: told what is trained and what it costs before training.

    Raises:
        FeatherweightError: no finished output, nothing free, a text too short, a folder in use, a teacher missing or of
            another vocabulary.
    """
    started = time.perf_counter()
    source, folder = Path(source), Path(output)
    ledger, place = read_ledger(source), pick_device(device)
    model, guide = _models(source, teacher, settings, place)
    windows, trained_on = _windows(ModelSource(str(source), source), data, settings, offline=offline)
    identity = {
        "finetune": settings.as_dict(), "data": windows.sha256, "teacher": fingerprint(guide) if guide else None,
        "output": hashlib.sha256(json.dumps(ledger["files"]).encode()).hexdigest(), "device": place.type,
    }  # fmt: skip
    changed = restore_ranks(model, settings.rank) if settings.rank else {}
    free = free_parameters(model, settings)
    journal = Journal.open(folder, identity)
    if journal.finished and (folder / LEDGER).is_file():
        done = read_ledger(folder)
        return Tuned(folder, done["finetune"], done["proof"])
    counted = _counted(free, ledger, grown(read_modules(source), changed))
    _announce(counted, len(changed), note)
    parts = windows.tokens[:trained_on], windows.tokens[trained_on:]
    with dense_cache(model, torch.float32):
        training = Training(free, objective(model, guide), *parts, settings, place, folder)
        state = training.run(report)
        put(free, state.best)
        write_shards(source, folder, journal, changed, taken(free))
        put(free, _as_stored(folder, free, place))
        after, logits = training.measure(), _probe(model, source, place)
    told = {
        "settings": settings.as_dict(), "teacher": teacher.name if teacher else None,
        "data": {**windows.description, "sha256": windows.sha256, "trained_on": trained_on, "held_out": len(parts[1])},
        **counted, **_losses(state, after), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    finished = finish(source, folder, journal, changed, logits, told, place)
    write_card(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Tuned(folder, told, finished["proof"])


def _models(source: Path, teacher: ModelSource | None, settings: Settings, device: torch.device) -> tuple[Any, Any | None]:
    """The output's model and the teacher's, in float32, once they fit the settings and each other."""
    if (settings.task == "distill") != (teacher is not None):
        raise FeatherweightError(
            "distillation needs a teacher, and nothing else does",
            found=f"--task {settings.task}, {f'--teacher {teacher.name}' if teacher else 'no --teacher'}",
            expected="--task distill --teacher DENSE, or --task lm",
        )
    model = load(source, device=str(device), dtype=torch.float32)
    guide = load(teacher.folder, device=str(device), dtype=torch.float32) if teacher else None
    _check(model, guide, settings)
    return model, guide


def _announce(counted: dict[str, Any], changed: int, note: Callable[[str], None]) -> None:
    """What is trained, and what it costs, before it is begun."""
    note(f"trains {counted['trained']:,} parameters in {counted['tensors']} tensors, {counted['share']:.4%} of the model's")
    if changed:
        note(f"leading ranks of {changed} linears in 16 bits: weights grow by {counted['grown_bytes']:,} bytes")


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


def _windows(source: ModelSource, data: str, settings: Settings, *, offline: bool) -> tuple[Windows, int]:
    """The windows used, those held out last, and how many are trained on.

    A text is cut into windows side by side, its last are held out; a published rule by documents draws its own.
    """
    corpus = load_corpus(data, split="calibration", offline=offline)
    tokenizer = range(source.config().get_text_config(decoder=True).vocab_size) if corpus.samples else source.tokenizer()
    if corpus.strict and corpus.rule == "documents":
        count = (settings.samples or 128) + settings.held_out
        drawn = calibration_windows(corpus, tokenizer, samples=count, length=settings.length, seed=settings.seed)
        return drawn, count - settings.held_out
    cut = evaluation_windows(replace(corpus, rule="joined", maximum_windows=None), tokenizer, length=settings.length)
    most = len(cut) - settings.held_out
    count = most if settings.samples is None else settings.samples
    if not 1 <= count <= most:
        raise FeatherweightError(
            "the text is too short",
            found=f"{len(cut)} windows of {settings.length} tokens in {corpus.name}",
            expected=f"{max(count, 1)} to train on and {settings.held_out} held out",
            fix="take a longer text, a shorter --length, or fewer --samples or --held-out",
        )
    order = torch.randperm(most, generator=torch.Generator().manual_seed(settings.seed))[:count].sort().values
    tokens = torch.cat([cut.tokens[order], cut.tokens[most:]])
    return Windows(tokens, {**cut.description, "windows": len(tokens), "seed": settings.seed}), count


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


def _losses(state: State, after: float) -> dict[str, Any]:
    """Held-out losses before, and after as stored; every measurement between."""
    names = ("step", "training_loss", "held_out_loss")
    history = [dict(zip(names, row, strict=True)) for row in state.history]
    history[0]["training_loss"] = None  # type: ignore[assignment]
    return {
        "before": state.history[0][2], "after": after, "best_step": state.best_step, "steps": state.step,
        "stopped": state.stopped, "history": history,
    }  # fmt: skip
