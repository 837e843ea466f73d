"""The one setting that a search turns, from its mild end to its harsh one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from featherweight.errors import FeatherweightError
from featherweight.methods.registry import METHODS, method_from
from featherweight.planning.recipe import Recipe

Goal = Literal["sparsity", "tokens-per-second", "smallness"]
GOALS: tuple[str, ...] = get_args(Goal)

#: Mild and harsh end of settings whose direction is known.
RANGES: dict[str, tuple[float, float]] = {"ratio": (0.0, 0.9), "bits": (8, 2)}
TOLERANCE = 0.01  # of settings that are not whole numbers


@dataclass(frozen=True)
class Knob:
    """A setting of one step, over places that rise from mild to harsh.

    Attributes:
        path: `steps.0.ratio`.
        mild, harsh: the ends.
        tolerance: of the place.
        values: the whole numbers that the method accepts, mild first; empty for a continuous setting, whose place is the
            distance from the mild end.
    """

    path: str
    mild: float
    harsh: float
    tolerance: float
    values: tuple[int, ...] = ()

    @property
    def last(self) -> float:
        """Place of the harsh end; the mild one's is 0."""
        return len(self.values) - 1 if self.values else abs(self.harsh - self.mild)

    def value(self, place: float) -> float | int:
        """The setting at a place; places between two whole numbers belong to the milder one."""
        if self.values:
            return self.values[int(place)]
        return round(self.mild + (place if self.harsh > self.mild else -place), 9)


def find_knob(recipe: Recipe, goal: str, path: str | None, span: str | None, tolerance: float | None) -> Knob:
    """The knob that was asked for, or the one that suits the goal.

    Of itself: for sparsity the first step's `ratio`; for smallness the last `bits` that the recipe sets, else the first `ratio`; for
    tokens per second the first `ratio` of a structured step, else as for smallness.

    Args:
        path: `steps.N.SETTING`, or None.
        span: `MILD:HARSH`, or None for what is known of the setting.
        tolerance: None for 0.01; of whole numbers always 1.

    Raises:
        FeatherweightError: no such setting, none that suits, or a range that cannot be read or that the method refuses.
    """
    if goal not in GOALS:
        raise FeatherweightError("unknown goal", found=goal, expected=", ".join(GOALS), fix="--maximize sparsity")
    path = path or _infer(recipe, goal)
    index, setting = _place(recipe, path)
    whole = _is_whole(recipe.steps[index].method, setting)
    mild, harsh = _ends(path, setting, span)
    if not whole:
        knob = Knob(path, mild, harsh, TOLERANCE if tolerance is None else tolerance)
        for end in (mild, harsh):
            _try(recipe, index, setting, end)
        return knob
    if mild != int(mild) or harsh != int(harsh):
        raise FeatherweightError(
            f"{path} is a whole number", found=f"--range {mild:g}:{harsh:g}", expected="whole ends", fix="8:2"
        )
    low, high = sorted((int(mild), int(harsh)))
    accepted = [value for value in range(low, high + 1) if _accepts(recipe, index, setting, value)]
    if not accepted:
        _try(recipe, index, setting, int(mild))  # says why
    return Knob(path, mild, harsh, 1, tuple(accepted if harsh > mild else reversed(accepted)))


def _infer(recipe: Recipe, goal: str) -> str:
    ratios = [
        f"steps.{index}.ratio"
        for index, step in enumerate(recipe.steps)
        if step.method in METHODS and "ratio" in _settings(step.method) and ":" not in str(step.settings.get("pattern", ""))
    ]
    structured = [path for path in ratios if recipe.steps[int(path.split(".")[1])].method == "structured"]
    bits = [f"steps.{index}.bits" for index, step in enumerate(recipe.steps) if _bits(step.method, step.settings) is not None]
    smaller = bits[-1:] + ratios
    found = {"sparsity": ratios, "smallness": smaller, "tokens-per-second": structured + smaller}[goal]
    if not found:
        fixed = [step.settings["pattern"] for step in recipe.steps if ":" in str(step.settings.get("pattern", ""))]
        raise FeatherweightError(
            f"{recipe.name} has no setting to turn for {goal}",
            found="steps "
            + ", ".join(step.method for step in recipe.steps)
            + "".join(f"; the pattern {each} is fixed" for each in fixed),
            expected="a step with a `ratio`" if goal == "sparsity" else "a step with `bits` or a `ratio`",
            fix="--recipe sparsegpt-50" if goal == "sparsity" else "--recipe gptq-4bit",
        )
    return found[0]


def _place(recipe: Recipe, path: str) -> tuple[int, str]:
    parts = path.split(".")
    if len(parts) != 3 or parts[0] != "steps" or not parts[1].isdigit() or int(parts[1]) >= len(recipe.steps):
        raise FeatherweightError(
            "no such knob",
            found=path,
            expected="steps.N.SETTING with N from 0 to " + str(len(recipe.steps) - 1),
            fix="--knob steps.0.ratio",
        )
    return int(parts[1]), parts[2]


def _ends(path: str, setting: str, span: str | None) -> tuple[float, float]:
    if span is None:
        if setting not in RANGES:
            raise FeatherweightError(
                f"nothing is known of the range of {path}",
                found="no --range",
                expected="--range MILD:HARSH, the end that changes the model least first",
                fix="--range 0:0.9",
            )
        return RANGES[setting]
    try:
        mild, harsh = (float(end) for end in span.split(":"))
    except ValueError:
        raise FeatherweightError("the range cannot be read", found=span, expected="MILD:HARSH", fix="--range 0:0.9") from None
    if setting in RANGES and (RANGES[setting][1] - RANGES[setting][0]) * (harsh - mild) < 0:
        return harsh, mild  # which end of these is harsh is known, whichever way the range is written
    return mild, harsh


def _settings(method: str) -> list[str]:
    return [field.name for field in fields(METHODS[method])]


def _bits(method: str, settings: dict[str, Any]) -> Any:
    if method not in METHODS or settings.get("grid", "integer") != "integer":  # a floating grid has its own
        return None
    defaults = {field.name: field.default for field in fields(METHODS[method])}
    return settings.get("bits", defaults.get("bits"))


def _is_whole(method: str, setting: str) -> bool:
    """Whether the setting's declared type is a whole number; also refuses a method or a setting that does not exist."""
    known = set(_settings(method)) if method in METHODS else set()
    if setting not in known:
        method_from(method, {setting: 0})  # says what there is
    declared = get_type_hints(METHODS[method])[setting]
    kinds = set(get_args(declared)) or {declared}
    if not kinds & {int, float}:
        raise FeatherweightError(
            f"{setting} of {method} is no number",
            found=setting,
            expected="a setting that is a number",
            fix="--knob steps.0.ratio",
        )
    return float not in kinds


def _try(recipe: Recipe, index: int, setting: str, value: float) -> None:
    step = recipe.steps[index]
    method_from(step.method, {**step.settings, setting: value})


def _accepts(recipe: Recipe, index: int, setting: str, value: int) -> bool:
    try:
        _try(recipe, index, setting, value)
    except FeatherweightError:
        return False
    return True
