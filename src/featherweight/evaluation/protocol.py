"""How a number was taken, and tables that refuse to mix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from featherweight.data import Windows
from featherweight.errors import FeatherweightError


@dataclass(frozen=True)
class Protocol:
    """Everything a number depends on besides the model; two numbers compare only if all fields agree.

    Attributes:
        corpus: its name.
        corpus_sha256: hash of its content.
        tokens_sha256: hash of the windows' token ids; another tokenizer gives another one.
        context: tokens per window.
        windows: how many were scored.
        rule: "joined" (non-overlapping windows of one long row) or "documents" (crops); of questions, how they were scored.
        joining: what stood between documents, None for crops.
        variant: "standard" or "new" rules of the published corpora.
        bos: where the BOS token stood.
        cache: how keys and values reached the attention: "none" (one forward per window) or a cache codec's name.
        dtype: the model's activations.
        against: fingerprint of the reference model, for what compares two; else empty.
        harness: the library that asked and its version, "" for our own.
        task_version: of its task.
        task_sha256: hash of the questions, prompts and answers as they were asked.
        fewshot: examples before each question.
        limit: questions at most, None for all.
    """

    corpus: str
    corpus_sha256: str
    tokens_sha256: str
    context: int
    windows: int
    rule: str = "joined"
    joining: str | None = "\n\n"
    variant: str = "standard"
    bos: str = "none"
    cache: str = "none"
    dtype: str = "float32"
    against: str = ""
    harness: str = ""
    task_version: str = ""
    task_sha256: str = ""
    fewshot: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, windows: Windows, *, dtype: str, cache: str = "none", against: str = "") -> Protocol:
        """The protocol of scoring `windows` with a model of `dtype`."""
        told = windows.description
        return cls(
            corpus=told["corpus"],
            corpus_sha256=told["corpus_sha256"],
            tokens_sha256=windows.sha256,
            context=windows.length,
            windows=len(windows),
            rule=told["rule"],
            joining=told["joining"],
            variant=told["variant"],
            bos=told["bos"],
            cache=cache,
            dtype=dtype,
            against=against,
        )

    def describe(self) -> str:
        """One line for people: «wikitext2, 24 windows of 1024, joined by '\\n\\n', BOS none, cache none, float32»."""
        if self.harness:
            asked = f"{self.windows} questions{'' if self.limit is None else f' (limit {self.limit})'} by {self.rule}"
            version = f"{self.harness}, version {self.task_version}"
            return f"{self.corpus}, {asked}, {self.fewshot}-shot, {self.dtype}, {version}, prompts {self.task_sha256[:8]}"
        if self.rule == "recall":
            return f"{self.corpus}, {self.windows} examples of {self.context} tokens, cache {self.cache}, {self.dtype}"
        if self.rule not in ("joined", "documents"):
            cache = "" if self.cache == "none" else f", cache {self.cache}"
            return f"{self.corpus}, {self.windows} questions by {self.rule}{cache}, {self.dtype}, set {self.corpus_sha256[:8]}"
        parts = [
            self.corpus if self.variant == "standard" else f"{self.corpus} ({self.variant})",
            f"{self.windows} windows of {self.context}",
            "crops of documents" if self.rule == "documents" else f"joined by {self.joining!r}",
            f"BOS {self.bos}",
            f"cache {self.cache}",
            self.dtype,
            f"text {self.corpus_sha256[:8]}",
        ]
        return ", ".join(parts + ([f"against {self.against[:8]}"] if self.against else []))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """The fields in which two protocols differ: `{name: (mine, theirs)}`."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def against_model(self, fingerprint: str) -> Protocol:
        """The same protocol, compared with a reference model."""
        return replace(self, against=fingerprint)


@dataclass(frozen=True)
class Measurement:
    """One number and how it was taken.

    Attributes:
        name: "perplexity", "kl", "top1_agreement", …
        value: the number.
        stderr: its standard error over windows; None for a single window.
        protocol: how it was taken.
    """

    name: str
    value: float
    stderr: float | None
    protocol: Protocol

    def as_dict(self) -> dict[str, Any]:
        """`{name, value, stderr, protocol}`; a value that is not finite becomes a string, as JSON has none."""
        value: float | str = self.value if math.isfinite(self.value) else str(self.value)
        return {"name": self.name, "value": value, "stderr": self.stderr, "protocol": self.protocol.as_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Measurement:
        """The inverse of `as_dict`."""
        return cls(stored["name"], float(stored["value"]), stored["stderr"], Protocol(**stored["protocol"]))


class MeasurementTable:
    """Rows are models, columns are measurements; every column has one protocol."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, Measurement]] = {}
        self._protocols: dict[str, tuple[str, Protocol]] = {}

    def add(self, row: str, measurements: Iterable[Measurement]) -> None:
        """Put measurements in the row of a model; all of them or, on an error, none.

        Raises:
            FeatherweightError: a column holds numbers of another protocol (the differing fields are named), or the cell
                is taken.
        """
        added = list(measurements)
        for index, measurement in enumerate(added):
            self._check(row, measurement)
            if measurement.name in {earlier.name for earlier in added[:index]}:
                raise FeatherweightError(f"{measurement.name} is given twice for {row}", expected="one number per cell")
        for measurement in added:
            self._protocols.setdefault(measurement.name, (row, measurement.protocol))
            self._cells.setdefault(row, {})[measurement.name] = measurement

    def _check(self, row: str, measurement: Measurement) -> None:
        if measurement.name in self._cells.get(row, {}):
            raise FeatherweightError(f"{measurement.name} of {row} is already in the table", expected="one number per cell")
        first, protocol = self._protocols.get(measurement.name, (row, measurement.protocol))
        differing = protocol.differences(measurement.protocol)
        if differing:
            raise FeatherweightError(
                f"{measurement.name} of {row} and of {first} were taken differently and cannot share a column",
                found="; ".join(f"{name} {theirs!r}" for name, (_, theirs) in differing.items()),
                expected="; ".join(f"{name} {mine!r}" for name, (mine, _) in differing.items()),
                fix=f"measure {row} again with the protocol of {first}: {protocol.describe()}",
            )

    @property
    def rows(self) -> list[str]:
        """Models, in the order they came."""
        return list(self._cells)

    @property
    def columns(self) -> list[str]:
        """Names of measurements, in the order they came."""
        return list(self._protocols)

    def get(self, row: str, column: str) -> Measurement | None:
        """The cell, None if it was not measured."""
        return self._cells.get(row, {}).get(column)

    def protocol(self, column: str) -> Protocol:
        """The one protocol of a column."""
        return self._protocols[column][1]

    def as_dict(self) -> dict[str, Any]:
        """`{columns: {name: protocol}, rows: {model: {name: {value, stderr}}}}`."""
        rows = {
            row: {name: {key: cell.as_dict()[key] for key in ("value", "stderr")} for name, cell in cells.items()}
            for row, cells in self._cells.items()
        }
        return {"columns": {name: self.protocol(name).as_dict() for name in self.columns}, "rows": rows}
