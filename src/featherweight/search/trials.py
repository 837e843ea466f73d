"""Models at values of a knob: planned for nothing, made when something must be measured, measured once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.data.choices import load_questions
from featherweight.data.corpora import load_corpus
from featherweight.engine.compress import Result, pick_device
from featherweight.engine.save import LEDGER
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource
from featherweight.packed.files import write_text
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import load_recipe
from featherweight.search.cells import Cells
from featherweight.search.constraints import Constraint
from featherweight.search.running import run_apart
from featherweight.version import __version__

CELLS, TRIALS, MODEL, KEPT = "cells.json", "trials", "model", ".model"


@dataclass(frozen=True)
class Measuring:
    """How numbers are taken.

    Attributes:
        windows, length: of a text: windows at most, tokens of a window; None as in `evaluate`.
        questions: of a task at most; None for all.
        letters: ask for letters, as in `answer`.
        batch, context: of the runs that tell speed and memory.
        device: where models are made and measured; None for a GPU if there is one.
        offline: never use the network.
    """

    windows: int | None = None
    length: int | None = None
    questions: int | None = None
    letters: bool = False
    batch: int = 1
    context: int = 128
    device: str | None = None
    offline: bool = False


@dataclass
class Trials:
    """All that a search makes and measures in its folder.

    Args:
        source: the dense model.
        recipe: shipped name, YAML file or dictionary.
        changes: dotted settings to replace in it.
        output: folder of the search.
        constraints: what will be measured; their texts and tasks are read now, before any work depends on them.
        how: how numbers are taken.
        report: called with a line per step.

    Raises:
        FeatherweightError: an unknown text or task, no such device, or a folder that holds something else.
    """

    source: ModelSource
    recipe: str | Path | dict[str, Any]
    changes: Mapping[str, Any]
    output: Path
    constraints: Sequence[Constraint]
    how: Measuring
    report: Callable[[str], None]
    made_now: int = field(default=0, init=False)
    measured_now: int = field(default=0, init=False)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Read what will be measured on, and what is known already."""
        self.device = str(pick_device(self.how.device))
        self._hashes = {each.label: self._content(each) for each in self.constraints}
        self._compared = {each.argument for each in self.constraints if each.metric.name == "kl"}
        calibration = load_recipe(self.recipe).with_changes(dict(self.changes)).calibration
        plan = api.plan(self.source, self.recipe, changes=dict(self.changes), offline=self.how.offline)
        self._tokens = self._corpus(calibration.source, "calibration", calibration.variant) if plan.needs_data else ""
        self.fingerprint = plan.fingerprint
        if self.output.is_dir() and any(self.output.iterdir()) and not self._is_ours():
            raise FeatherweightError(
                "the folder holds something else",
                found=f"{self.output}: " + ", ".join(sorted(path.name for path in self.output.iterdir())[:5]),
                expected="a new or empty folder, or that of an earlier search",
                fix="choose another --output",
            )
        self.cells = Cells(self.output / CELLS)

    def plan(self, settings: Mapping[str, Any]) -> Plan:
        """The plan with these settings on top."""
        return api.plan(self.source, self.recipe, changes={**self.changes, **settings}, offline=self.how.offline)

    def made(self, plan: Plan) -> dict[str, Any]:
        """`{bytes, bits, sparsity}` of the finished model; made now unless that is known."""

        def make() -> dict[str, Any]:
            result = self._compress(plan, self.folder(plan))  # finished, so this reads what its ledger knows
            rows = [row for row in result.rows if row.chain]
            zeros = sum(row.measured.get("sparsity", 0.0) * row.weights for row in rows)
            sparsity = zeros / sum(row.weights for row in rows)
            return {"bytes": result.totals.file_bytes, "bits": result.totals.linear_bits, "sparsity": sparsity}

        return self._noted(plan, self.cells.get({**self._of(plan), "measure": "made"}, make))

    def facts(self, plan: Plan) -> dict[str, Any]:
        """`{bytes, bits}` as planned; in their place, and beside them, what `made` and `run` were asked for."""
        planned = {"bytes": plan.totals.file_bytes, "bits": plan.totals.linear_bits}
        return {**planned, **self._facts.get(plan.hash, {})}

    def measure(self, constraint: Constraint, plan: Plan | None) -> tuple[float, float | None]:
        """The value that the constraint is on, and its standard error if it has one; of the dense model without a plan."""
        name = constraint.metric.name
        if name in ("bytes", "bits"):
            found = self._dense_size() if plan is None else self.made(plan)
            return float(found[name]), None
        if constraint.metric.cost == 1:
            return float(self.run(plan)["peak_bytes" if name == "peak-memory" else "tokens_per_second"]), None
        found = self._quality(constraint, plan)[name]
        return float(found["value"]), found["stderr"]

    def run(self, plan: Plan | None) -> dict[str, Any]:
        """Speed and memory of a model in a process of its own, see `run_apart`."""
        how = self.how
        of = {"run": {"batch": how.batch, "context": how.context}}

        def make(folder: Path) -> dict[str, Any]:
            return run_apart(folder, device=self.device, batch=how.batch, context=how.context)

        found = self._cell(plan, of, make)
        return found if plan is None else self._noted(plan, found)

    def folder(self, plan: Plan) -> Path:
        """The finished model of a plan: the kept one, or one among the trials, made now if it is not there."""
        if self._kept() == self._name(plan):
            return self.output / MODEL
        folder = self.output / TRIALS / self._name(plan)
        if not (folder / LEDGER).is_file():
            self.made_now += 1
            self._compress(plan, folder)
        return folder

    def keep(self, plan: Plan) -> Path:
        """The plan's model as the search's answer, in the place of an earlier one."""
        folder, kept = self.folder(plan), self.output / MODEL
        if folder != kept:
            (self.output / KEPT).unlink(missing_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
            write_text(self.output / KEPT, self._name(plan))
        return kept

    def discard(self, plan: Plan | None = None) -> None:
        """Delete the model of a plan, or of all, from among the trials; measurements stay."""
        shutil.rmtree(self.output / TRIALS / (self._name(plan) if plan else ""), ignore_errors=True)

    def _compress(self, plan: Plan, folder: Path) -> Result:
        return api.compress(plan, folder, device=self.device, offline=self.how.offline)

    def _quality(self, constraint: Constraint, plan: Plan | None) -> dict[str, Any]:
        how, argument = self.how, constraint.argument
        of: dict[str, Any] = {"content": self._hashes[constraint.label]}

        def make(folder: Path) -> dict[str, Any]:
            found: list[Measurement]
            if constraint.metric.name == "accuracy":
                found = api.answer(
                    folder, argument, letters=how.letters, limit=how.questions, device=self.device, offline=how.offline
                )
            else:
                found = api.evaluate(
                    folder, argument, against=self.source.folder if of["against"] else None, length=how.length,
                    windows=how.windows, device=self.device, offline=how.offline,
                )  # fmt: skip
            return {measurement.name: measurement.as_dict() for measurement in found}

        if constraint.metric.name == "accuracy":
            of |= {"task": argument, "questions": how.questions, "letters": how.letters}
        else:
            against = plan is not None and argument in self._compared
            of |= {"text": argument, "windows": how.windows, "length": how.length, "against": against}
        return self._cell(plan, of, make)

    def _cell(self, plan: Plan | None, of: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        if plan is not None:
            self.made(plan)  # known before the model may be deleted

        def measured() -> dict[str, Any]:
            self.measured_now += 1
            return make(self.source.folder if plan is None else self.folder(plan))

        return self.cells.get({**self._of(plan), "measure": dict(of)}, measured)

    def _name(self, plan: Plan) -> str:
        """Of the model's folder: what decides its bytes, the plan, the tokens and the device, in a hash."""
        return hashlib.sha256(json.dumps(self._of(plan)).encode()).hexdigest()[:16]

    def _kept(self) -> str:
        """The name that the model in `model` had among the trials."""
        note = self.output / KEPT
        return note.read_text(encoding="utf-8") if note.is_file() and (self.output / MODEL / LEDGER).is_file() else ""

    def _noted(self, plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
        self._facts.setdefault(plan.hash, {}).update(found)
        return found

    def _of(self, plan: Plan | None) -> dict[str, Any]:
        made = {"dense": self.fingerprint} if plan is None else {"plan": plan.hash, "tokens": self._tokens}
        return {**made, "device": self.device, "version": __version__}

    def _dense_size(self) -> dict[str, float]:
        plan = self.plan({})
        weights = sum(row.weights for row in plan.rows if row.chain)
        size = sum(path.stat().st_size for path in self.source.folder.glob("*.safetensors"))
        return {"bytes": size, "bits": 8 * sum(row.original_bytes for row in plan.rows if row.chain) / weights}

    def _content(self, constraint: Constraint) -> str:
        if constraint.metric.argument == "TASK":
            return load_questions(constraint.argument, offline=self.how.offline).sha256
        return self._corpus(constraint.argument, "evaluation") if constraint.metric.argument else ""

    def _corpus(self, name: str, split: Any, variant: Any = "standard") -> str:
        return load_corpus(name, split=split, offline=self.how.offline, variant=variant).sha256

    def _is_ours(self) -> bool:
        return any((self.output / name).exists() for name in (CELLS, TRIALS))
