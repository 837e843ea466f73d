"""What a search came to: its trials, the best of them, and the files that tell."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.packed.files import write_text
from featherweight.search.constraints import Constraint
from featherweight.search.knobs import Knob

LOG, TABLE = "search.json", "trials.csv"


@dataclass(frozen=True)
class Observed:
    """What one constraint saw of one model.

    Attributes:
        label: the constraint's.
        value, stderr: as measured; a value of the plan has no error.
        limit: the bound, with the dense model's value multiplied in.
        excess: how far the value lies on the wrong side; 0 or less where the constraint holds.
    """

    label: str
    value: float
    stderr: float | None
    limit: float
    excess: float

    @property
    def holds(self) -> bool:
        """Whether the constraint does."""
        return self.excess <= 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form; a number that is not finite becomes a string, as JSON has none."""
        told = asdict(self)
        return {key: str(each) if isinstance(each, float) and not isfinite(each) else each for key, each in told.items()}


@dataclass(frozen=True)
class Trial:
    """One setting of the knob.

    Attributes:
        value: the setting.
        place: on the knob, larger is harsher.
        plan: its hash.
        bytes, bits: planned (where the plan states a bound and the model was made, as made).
        sparsity: share of zeros in the compressed weights; None where no model had to be made.
        tokens_per_second: where it was measured.
        observed: constraints that were checked, cheapest first; after one that fails the others are not.
        unchecked: labels of those.
        too_mild: what failed is something that a harsher setting mends (bytes, memory, speed).
    """

    value: float
    place: float
    plan: str
    bytes: int
    bits: float
    sparsity: float | None
    tokens_per_second: float | None
    observed: tuple[Observed, ...]
    unchecked: tuple[str, ...]
    too_mild: bool

    @property
    def holds(self) -> bool:
        """Whether every constraint was checked and holds."""
        return not self.unchecked and all(each.holds for each in self.observed)

    def numbers(self) -> dict[str, float | None]:
        """Its numbers by name, `heldout/kl` for kl(heldout); whether it holds as 1 or 0."""
        found = {
            "setting": self.value, "holds": float(self.holds), "bytes": self.bytes, "bits": self.bits,
            "sparsity": self.sparsity, "tokens_per_second": self.tokens_per_second,
        }  # fmt: skip
        for each in self.observed:
            metric, _, argument = each.label.removesuffix(")").partition("(")
            name = f"{argument}/{metric}" if argument else metric
            found |= {name: each.value, f"{name}_stderr": each.stderr}
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "observed": [each.as_dict() for each in self.observed], "holds": self.holds}


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        knob, goal, constraints: as searched.
        trials: in the order in which they were made.
        best: the trial that holds and serves the goal best; None if none holds.
        folder: the best model.
        notes: what a reader must know: settings out of order, bounds within an error.
        made, measured: models and measurements of this call; the others were known.
        seconds: of this call.
    """

    knob: Knob
    goal: str
    constraints: tuple[Constraint, ...]
    trials: tuple[Trial, ...]
    best: Trial | None
    folder: Path
    notes: tuple[str, ...]
    made: int
    measured: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "goal": self.goal,
            "subject_to": [constraint.text for constraint in self.constraints],
            "knob": {
                "path": self.knob.path,
                "mild": self.knob.mild,
                "harsh": self.knob.harsh,
                "tolerance": self.knob.tolerance,
            },
            "best": self.best.as_dict() if self.best else None,
            "model": str(self.folder) if self.best else None,
            "trials": [trial.as_dict() for trial in self.trials],
            "notes": list(self.notes),
            "made_now": self.made,
            "measured_now": self.measured,
            "seconds": self.seconds,
        }


def first_failed(trial: Trial) -> Observed:
    """The constraint at which a trial that does not hold ended."""
    return next(each for each in trial.observed if not each.holds)


def nothing_holds(found: Found) -> FeatherweightError:
    """How near each side came: the harshest setting that is still too large or slow, the mildest that is already too bad."""
    too_mild = [trial for trial in found.trials if trial.too_mild]
    too_harsh = [trial for trial in found.trials if not trial.too_mild]
    ends = [max(too_mild, key=lambda trial: trial.place)] if too_mild else []
    ends += [min(too_harsh, key=lambda trial: trial.place)] if too_harsh else []
    missed = {trial.value: first_failed(trial) for trial in ends}
    if len(ends) == 2:
        fix = "these exclude each other here: relax one, or try another recipe"
    else:
        fix = f"relax the bound, or take a {'harsher' if too_mild else 'milder'} --range or recipe"
    return FeatherweightError(
        "no setting meets every constraint",
        found="the closest: "
        + "; ".join(
            f"{each.label} {each.value:.5g} at {found.knob.path}={value:g}, {each.excess:.3g} beyond {each.limit:.5g}"
            for value, each in missed.items()
        ),
        expected=f"{', '.join(each.text for each in found.constraints)}, with {found.knob.path} from {found.knob.mild:g} to "
        f"{found.knob.harsh:g}",
        fix=fix,
    )


def write_log(found: Found, output: Path) -> None:
    """`search.json` and `trials.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / LOG, json.dumps(found.as_dict(), indent=1))
    labels = [constraint.label for constraint in found.constraints]
    with (output / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = [column for label in labels for column in (label, f"{label} stderr", f"{label} limit")]
        table.writerow([found.knob.path, "bytes", "bits", "sparsity", "tokens_per_second", *columns, "holds", "plan"])
        for trial in found.trials:
            seen = {each.label: (each.value, each.stderr, each.limit) for each in trial.observed}
            numbers = [number for label in labels for number in seen.get(label, (None, None, None))]
            front = [trial.value, trial.bytes, trial.bits, trial.sparsity, trial.tokens_per_second]
            table.writerow(["" if cell is None else cell for cell in [*front, *numbers, trial.holds, trial.plan]])
