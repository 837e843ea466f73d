"""One model of a comparison: made once, measured group by group, every group kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.data import load_corpus
from featherweight.data.choices import load_questions
from featherweight.engine.compress import Result
from featherweight.engine.save import LEDGER, read_ledger
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.evaluation.speed import measure_speed
from featherweight.evaluation.timing import device_name
from featherweight.models.source import ModelSource
from featherweight.planning.plan import Plan
from featherweight.reports.compare import Entry
from featherweight.search.cells import Cells

#: Decoding is timed with one sequence behind so many tokens (or half of the model's positions).
CONTEXT, TOKENS, REPEATS = 128, 16, 3


@dataclass(frozen=True)
class Questionnaire:
    """What is measured of every model of a comparison.

    Attributes:
        data, length, windows: of perplexity, divergence and agreement, as in `evaluate`.
        task, questions: of accuracy by likelihood, as in `answer`; None measures none.
        speed: whether decoding is timed.
        dtype: of activations for texts and tasks; None is float32 on a CPU and the checkpoint's elsewhere.

    Raises:
        FeatherweightError: a number of questions without a task.
    """

    data: str = "heldout"
    length: int | None = None
    windows: int | None = None
    task: str | None = None
    questions: int | None = None
    speed: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        if self.questions is not None and self.task is None:
            raise FeatherweightError(
                "questions of no task", found=f"{self.questions} questions", expected="a task", fix="--task continuation"
            )


@dataclass(frozen=True)
class Trial:
    """How the models of one comparison are made and measured.

    Attributes:
        source: the dense model.
        output: folder of the comparison.
        asked: what is measured.
        cells: finished results.
        device: on which everything runs.
        offline, report: as in `compare`.
        notes: how times were taken, one line each; filled meanwhile.
    """

    source: ModelSource
    output: Path
    asked: Questionnaire
    cells: Cells
    device: str
    offline: bool
    report: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def dense(self, plan: Plan) -> Entry:
        """The model itself; any plan knows its size."""
        size = sum(path.stat().st_size for path in self.source.folder.glob("*.safetensors"))
        bits = plan.original_bits
        return self._measured(Entry("dense", bits, bits, size, {}), {"model": plan.fingerprint}, lambda: self.source.folder)

    def compressed(self, name: str, plan: Plan) -> Entry:
        """The model by one recipe; it is made, or opened, only if a result is asked for that is not known."""
        model = {"plan": plan.hash, "made_on": self.device}
        if plan.needs_data:
            wanted = plan.recipe.calibration
            corpus = load_corpus(wanted.source, split="calibration", offline=self.offline, variant=wanted.variant)
            model["calibration"] = corpus.sha256
        made: list[Result] = []

        def result() -> Result:
            if not made:
                folder = self.output / name
                if not (folder / LEDGER).is_file():
                    self.report(f"compressing by {name}")
                made.append(api.compress(plan, folder, device=self.device, offline=self.offline))
            return made[0]

        size = self.cells.get({"what": "size", **model}, lambda: _size(result()))
        methods = tuple(step.method for step in plan.recipe.steps)
        entry = Entry(name, measurements={}, methods=methods, **size)
        return self._measured(entry, model, lambda: result().folder, against=self.source.folder)

    def _measured(self, entry: Entry, model: dict[str, Any], folder: Callable[[], Path], against: Path | None = None) -> Entry:
        """The entry with its numbers; each group is a cell, so that asking for one more measures only that."""
        asked, cells, name = self.asked, self.cells, entry.name
        text = load_corpus(asked.data, split="evaluation", offline=self.offline).sha256
        where = {**model, "device": self.device, "dtype": asked.dtype}
        key = {**where, "data": asked.data, "text": text, "length": asked.length, "windows": asked.windows}
        found = cells.get(key, lambda: self._text(name, folder(), against))["measurements"]
        if asked.task is not None:
            file = load_questions(asked.task, offline=self.offline).sha256
            key = {**where, "task": asked.task, "file": file, "questions": asked.questions}
            found = found + cells.get(key, lambda: self._task(name, folder()))["measurements"]
        measurements = [Measurement.from_dict(each) for each in found]
        entry = replace(entry, measurements={measurement.name: measurement for measurement in measurements})
        if not asked.speed:
            return entry
        key = {**model, "device": device_name(self.device), "decode": [CONTEXT, TOKENS, REPEATS]}
        speed = cells.get(key, lambda: self._speed(name, folder()))
        self.notes.extend(note for note in speed["notes"] if note not in self.notes)
        return replace(entry, tokens_per_second=speed["tokens_per_second"], peak_bytes=speed["peak_bytes"])

    def _text(self, name: str, folder: Path, against: Path | None) -> dict[str, Any]:
        self.report(f"measuring {name} on {self.asked.data}")
        found = api.evaluate(
            folder, self.asked.data, against=against, length=self.asked.length, windows=self.asked.windows,
            device=self.device, dtype=self.asked.dtype, offline=self.offline,
        )  # fmt: skip
        kept = ("perplexity", "kl", "top1_agreement")
        return {"measurements": [measurement.as_dict() for measurement in found if measurement.name in kept]}

    def _task(self, name: str, folder: Path) -> dict[str, Any]:
        assert self.asked.task is not None
        self.report(f"asking {name} the questions of {self.asked.task}")
        asked = self.asked
        found = api.answer(
            folder, self.asked.task, limit=asked.questions, device=self.device, dtype=asked.dtype, offline=self.offline
        )
        return {"measurements": [measurement.as_dict() for measurement in found if measurement.name == "accuracy"]}

    def _speed(self, name: str, folder: Path) -> dict[str, Any]:
        """Tokens a second of one sequence; peak memory only where the device counts it."""
        self.report(f"timing {name}")
        context = min(CONTEXT, self.source.max_length() // 2)
        tokens = min(TOKENS, context)
        loaded = api.load(folder, device=self.device)
        result = measure_speed(loaded, contexts=[context], tokens=tokens, repeats=REPEATS)
        timing = result["timings"][0]
        graph = timing["graph_tokens_per_second"]
        how = f"tokens/s: one sequence behind {context} tokens, {result['device']}, {result['dtype']}"
        if graph is not None:
            how += ", CUDA graph"
        elif not self.device.startswith("cpu"):
            how += f", eager for {name}: {timing['graph_note']}"
        return {
            "tokens_per_second": graph or timing["tokens_per_second"],
            "peak_bytes": None if self.device.startswith("cpu") else timing["peak_bytes"],
            "notes": [how],
        }


def _size(result: Result) -> dict[str, Any]:
    """Sizes, and the seconds of compressing where one call did all of it."""
    totals, gone_on_with = result.totals, result.resumed > 0 and result.seconds > 0
    return {
        "bits": totals.linear_bits,
        "model_bits": totals.model_bits,
        "file_bytes": totals.file_bytes,
        "nominal_bits": totals.nominal_bits,
        "seconds": None if gone_on_with else read_ledger(result.folder)["seconds"],
    }
