"""What must hold of a model: `accuracy(continuation) >= 0.5`, `perplexity(heldout) <= 1.05 * dense`, `bytes <= 120MB`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featherweight.errors import FeatherweightError, nearest
from featherweight.planning.quantities import parse_bytes, split_amount


@dataclass(frozen=True)
class Metric:
    """Something that can be known of a compressed model.

    Attributes:
        name: as written.
        direction: the comparison that makes sense: ">=" or "<=".
        argument: what stands in brackets: "TASK", "TEXT" or "".
        unit: "bytes", "share" (a % is allowed) or "".
        cost: 0 is known from the plan, 1 takes a run of the model, 2 a measurement of its quality.
        example: a constraint.
    """

    name: str
    direction: str
    argument: str
    unit: str
    cost: int
    example: str

    @property
    def written(self) -> str:
        """`kl(TEXT)`."""
        return f"{self.name}({self.argument})" if self.argument else self.name

    @property
    def suffers(self) -> bool:
        """Whether harsher compression makes it worse; the others it makes better."""
        return self.cost == 2


METRICS = {
    metric.name: metric
    for metric in (
        Metric("bytes", "<=", "", "bytes", 0, "bytes <= 120MB"),
        Metric("bits", "<=", "", "", 0, "bits <= 3.5"),
        Metric("peak-memory", "<=", "", "bytes", 1, "peak-memory <= 8GiB"),
        Metric("tokens-per-second", ">=", "", "", 1, "tokens-per-second >= 40"),
        Metric("accuracy", ">=", "TASK", "share", 2, "accuracy(continuation) >= 0.5"),
        Metric("kl", "<=", "TEXT", "", 2, "kl(heldout) <= 0.05"),
        Metric("perplexity", "<=", "TEXT", "", 2, "perplexity(heldout) <= 1.05 * dense"),
    )
}
_SHAPE = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*(<=|>=|<|>|==|=|≤|≥)\s*(.+?)\s*", re.DOTALL)
_RELATIVE = re.compile(r"(?:([^*\s]+)\s*\*\s*)?dense|dense\s*\*\s*([^*\s]+)")


@dataclass(frozen=True)
class Constraint:
    """One comparison.

    Attributes:
        text: as the user wrote it.
        metric: what is compared.
        argument: the task or text, "" where the metric takes none.
        bound: in bytes, or as a share, or a plain number; a factor where `relative`.
        relative: whether the bound is to be multiplied by the dense model's value.
    """

    text: str
    metric: Metric
    argument: str
    bound: float
    relative: bool = False

    @property
    def label(self) -> str:
        """`accuracy(continuation)`: what is measured, whatever the bound."""
        return f"{self.metric.name}({self.argument})" if self.argument else self.metric.name

    def limit(self, dense: float | None) -> float:
        """The bound as a value of the metric; `dense` is the dense model's."""
        if not self.relative:
            return self.bound
        assert dense is not None
        return self.bound * dense

    def excess(self, value: float, limit: float) -> float:
        """How far `value` lies on the wrong side of `limit`; 0 or less where it holds, never NaN."""
        beyond = limit - value if self.metric.direction == ">=" else value - limit
        return beyond if beyond == beyond else float("inf")  # NaN is never good enough


def parse_constraint(text: str) -> Constraint:
    """One constraint: `METRIC >= BOUND` or `METRIC <= BOUND`, whichever makes sense for the metric.

    The metric is `accuracy(TASK)`, `kl(TEXT)`, `perplexity(TEXT)`, `bytes`, `bits`, `peak-memory` or `tokens-per-second`; the bound a
    number (bytes with a unit, shares also in %), `dense`, or `FACTOR * dense`.

    Raises:
        FeatherweightError: anything else; the error names what was found, what is allowed and the nearest.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise FeatherweightError(
            "a constraint cannot be read",
            found=text,
            expected="METRIC >= BOUND or METRIC <= BOUND; metrics: " + ", ".join(metric.written for metric in METRICS.values()),
            fix=f'"{METRICS[nearest(text, METRICS, 1)[0]].example}"',
        )
    name, argument, sign, bound = match.groups()
    if name not in METRICS:
        close = METRICS[nearest(name.lower().replace("_", "-"), METRICS, 1)[0]]
        raise FeatherweightError(
            "a constraint on something unknown",
            found=f"{name!r} in {text!r}",
            expected=", ".join(metric.written for metric in METRICS.values()),
            fix=f'did you mean {close.written}? "{close.example}"',
        )
    metric = METRICS[name]
    argument = _argument(metric, argument, text)
    direction = {"≤": "<=", "≥": ">="}.get(sign, sign)
    if direction != metric.direction:
        reason = "is wanted large" if metric.direction == ">=" else "is wanted small"
        raise FeatherweightError(
            f"{metric.name} {reason}",
            found=f"{sign!r} in {text!r}",
            expected=metric.direction,
            fix=f'"{text.replace(sign, metric.direction, 1)}"',
        )
    relative = _RELATIVE.fullmatch(bound)
    if relative is None:
        return Constraint(text, metric, argument, _bound(metric, bound, text))
    if metric.name == "kl":
        raise FeatherweightError(
            "the dense model's divergence from itself is 0", found=text, expected="a number of nats", fix=f'"{metric.example}"'
        )
    factor = relative.group(1) or relative.group(2)
    return Constraint(text, metric, argument, 1.0 if factor is None else _number(factor, text), relative=True)


def parse_constraints(texts: Sequence[str]) -> list[Constraint]:
    """All of them, cheapest to check first.

    Raises:
        FeatherweightError: none at all, one that cannot be read, or two on the same thing.
    """
    if not texts:
        raise FeatherweightError(
            "a search needs something to hold",
            found="no constraint",
            expected="at least one --subject-to",
            fix=f'--subject-to "{METRICS["accuracy"].example}"',
        )
    constraints = [parse_constraint(text) for text in texts]
    seen: dict[str, str] = {}
    for constraint in constraints:
        if constraint.label in seen:
            raise FeatherweightError(
                f"two constraints on {constraint.label}",
                found=f"{seen[constraint.label]!r} and {constraint.text!r}",
                expected="one each",
                fix="keep the stricter one",
            )
        seen[constraint.label] = constraint.text
    return sorted(constraints, key=lambda constraint: constraint.metric.cost)


def _argument(metric: Metric, given: str | None, text: str) -> str:
    found = (given or "").strip()
    if bool(found) != bool(metric.argument):
        raise FeatherweightError(
            f"{metric.name} needs to know its {metric.argument.lower()}"
            if metric.argument
            else f"{metric.name} takes no brackets",
            found=text,
            expected=metric.written + (", as in `fw eval --task`" if metric.argument == "TASK" else ", as in `fw eval --data`")
            if metric.argument
            else metric.written,
            fix=f'"{metric.example}"',
        )
    return found


def _bound(metric: Metric, bound: str, text: str) -> float:
    if metric.unit == "bytes":
        return parse_bytes(bound)
    if metric.unit != "share":
        return _number(bound, text)
    value = _number(bound.removesuffix("%"), text) / (100 if bound.endswith("%") else 1)
    if value > 1:
        raise FeatherweightError(
            "a share is at most 1", found=text, expected="0 to 1, or a %", fix=f"{value:g}% or {value / 100:g}"
        )
    return value


def _number(found: str, text: str) -> float:
    try:
        number, unit = split_amount(found)
    except FeatherweightError:
        number, unit = 0.0, "?"
    if unit or number <= 0:
        raise FeatherweightError(
            "the bound is no number above 0",
            found=f"{found!r} in {text!r}",
            expected="a number, `dense`, or `FACTOR * dense`",
            fix="perplexity(heldout) <= 1.05 * dense",
        )
    return number
