"""The harshest setting of one knob under which everything that was asked for still holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from featherweight.models.source import ModelSource
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import load_recipe
from featherweight.search.bisection import bisect
from featherweight.search.constraints import Constraint, parse_constraints
from featherweight.search.knobs import Knob, find_knob
from featherweight.search.outcome import Found, Observed, Trial, first_failed, nothing_holds, write_log
from featherweight.search.trials import MODEL, Measuring, Trials


def search(
    source: ModelSource,
    recipe: str | Path | dict[str, Any],
    goal: str,
    subject_to: Sequence[str],
    output: Path,
    *,
    knob: str | None = None,
    span: str | None = None,
    tolerance: float | None = None,
    changes: dict[str, Any] | None = None,
    how: Measuring | None = None,
    keep_trials: bool = False,
    report: Callable[[str], None] = lambda line: None,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Turn one knob of a recipe as far as the constraints allow; every measurement is kept, and used by the next search.

    What gets worse along the knob (accuracy, KL, perplexity) is bisected; what gets better (bytes, memory, speed) sends the search
    on to harsher settings, unmeasured where the plan already tells. The answer is a trial that was made and measured.

    Args:
        goal, subject_to: one of `GOALS`, and constraints, see `parse_constraint`.
        output: folder: the best model in `model`, `search.json`, `trials.csv`, `cells.json`; the same call goes on.
        knob, span, tolerance: see `find_knob`.
        changes, how: settings to replace in the recipe, and how numbers are taken.
        keep_trials: keep every model, in `trials`.
        report: called with a line per trial.
        tried: called with each trial when it is done.

    Raises:
        FeatherweightError: a constraint, knob, range, text or task that makes no sense; or no trial holds (the log is written).
    """
    started = time.perf_counter()
    constraints = parse_constraints(subject_to)
    turned = find_knob(load_recipe(recipe).with_changes(changes or {}), goal, knob, span, tolerance)
    trials = Trials(source, recipe, changes or {}, output, constraints, how or Measuring(), report)
    walk = _Walk(trials, turned, goal, constraints, keep_trials, tried)
    bisect(0, turned.last, walk.goes_on, turned.tolerance)
    if walk.best is not None:
        trials.keep(walk.plans[walk.best.place])
    if not keep_trials:
        trials.discard()
    found = Found(
        turned, goal, tuple(constraints), tuple(walk.log.values()), walk.best, trials.output / MODEL, walk.notes(),
        trials.made_now, trials.measured_now, time.perf_counter() - started,
    )  # fmt: skip
    write_log(found, output)
    if found.best is None:
        raise nothing_holds(found)
    return found


@dataclass
class _Walk:
    """One search under way.

    Attributes:
        trials, knob, goal, constraints, keep_trials, tried: as in `search`.
        log, plans: by place.
        best: so far.
    """

    trials: Trials
    knob: Knob
    goal: str
    constraints: list[Constraint]
    keep_trials: bool
    tried: Callable[[Trial], None]
    log: dict[float, Trial] = field(default_factory=dict)
    plans: dict[float, Plan] = field(default_factory=dict)
    best: Trial | None = None

    def goes_on(self, place: float) -> bool:
        """Whether harsher settings than this are worth a trial."""
        place = float(int(place)) if self.knob.values else place
        if place not in self.log:
            trial = self.log[place] = self._judge(place)
            self._say(trial)
            self.tried(trial)
            if trial.holds and (self.best is None or self._score(trial) > self._score(self.best)):
                trial, self.best = self.best or trial, trial
            if not self.keep_trials and trial is not self.best:
                self.trials.discard(self.plans[trial.place])
        return self.log[place].holds or self.log[place].too_mild

    def notes(self) -> tuple[str, ...]:
        """What is odd about the log: values out of order, and how sure the answer is."""
        by_place = sorted(self.log.values(), key=lambda trial: trial.place)
        found = [note for constraint in self.constraints for note in self._out_of_order(constraint, by_place)]
        harshest = max((trial.place for trial in by_place if trial.holds), default=0)
        if self.best is not None and self.best.place < harshest:
            found.append(
                f"a harsher setting holds too, but serves the goal less well than {self.knob.path}={self.best.value:g}"
            )
        for each in self.best.observed if self.best else ():
            if each.stderr is not None and abs(each.value - each.limit) < each.stderr:
                found.append(f"{each.label} of the answer lies within one standard error ({each.stderr:.2g}) of its bound")
        return tuple(found)

    def _out_of_order(self, constraint: Constraint, by_place: list[Trial]) -> list[str]:
        """A note on the largest step against the direction that the search relies on, if there is one."""
        seen = [(trial.value, each.value) for trial in by_place for each in trial.observed if each.label == constraint.label]
        steps = [
            (constraint.excess(one[1], other[1]) * (1 if constraint.metric.suffers else -1), one, other)
            for one, other in pairwise(seen)
        ]
        worst, one, other = max(steps, default=(0.0, (0.0, 0.0), (0.0, 0.0)))
        if worst <= 0:
            return []
        values = f"{one[1]:.5g} at {one[0]:g}, {other[1]:.5g} at {other[0]:g}"
        return [f"{constraint.label} does not follow {self.knob.path}: {values}; the search takes it to"]

    def _judge(self, place: float) -> Trial:
        value = self.knob.value(place)
        plan = self.plans[place] = self.trials.plan({self.knob.path: value})
        observed: list[Observed] = []
        for constraint in self.constraints:
            observed.append(self._observe(constraint, plan))
            if not observed[-1].holds:
                break
        unchecked = tuple(each.label for each in self.constraints[len(observed) :])
        holds = observed[-1].holds
        too_mild = not holds and not self.constraints[len(observed) - 1].metric.suffers
        if holds:
            self.trials.made(plan)
            if self.goal == "tokens-per-second":
                self.trials.run(plan)
        facts = self.trials.facts(plan)
        return Trial(
            value, place, plan.hash, int(facts["bytes"]), facts["bits"], facts.get("sparsity"),
            facts.get("tokens_per_second"), tuple(observed), unchecked, too_mild,
        )  # fmt: skip

    def _observe(self, constraint: Constraint, plan: Plan) -> Observed:
        dense = self.trials.measure(constraint, None)[0] if constraint.relative else None
        limit = constraint.limit(dense)
        if constraint.metric.cost == 0:
            planned = float(plan.totals.file_bytes if constraint.metric.name == "bytes" else plan.totals.linear_bits)
            if constraint.excess(planned, limit) <= 0 or not any(row.at_most for row in plan.rows):
                return Observed(constraint.label, planned, None, limit, constraint.excess(planned, limit))
        value, error = self.trials.measure(constraint, plan)
        return Observed(constraint.label, value, error, limit, constraint.excess(value, limit))

    def _score(self, trial: Trial) -> tuple[float, ...]:
        """Larger is better; among equals the harsher setting."""
        by_goal = {"sparsity": trial.sparsity, "smallness": -trial.bytes, "tokens-per-second": trial.tokens_per_second}
        return (by_goal[self.goal] or 0.0, trial.place)

    def _say(self, trial: Trial) -> None:
        seen = ", ".join(f"{each.label} {each.value:.5g}" for each in trial.observed)
        verdict = "holds" if trial.holds else f"fails {first_failed(trial).label}"
        self.trials.report(f"{self.knob.path}={trial.value:g}: {seen}: {verdict}")
