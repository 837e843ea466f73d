"""What an output says of itself, read once for the page and the model card: ledger, plan, evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.evaluation.protocol import Measurement
from featherweight.reports.tables import with_error


@dataclass(frozen=True)
class Told:
    """A finished output in its own files.

    Attributes:
        ledger: `ledger.json`.
        predicted: totals as planned, from `plan.json`.
        at_most: whether these are bounds.
        quality: what `fw compress --evaluate` measured, by text.
    """

    ledger: Mapping[str, Any]
    predicted: Mapping[str, Any]
    at_most: bool
    quality: Mapping[str, list[Measurement]]

    @classmethod
    def of(cls, folder: Path) -> Told:
        """The files of a finished output."""
        ledger, plan = _read(folder / "ledger.json"), _read(folder / "plan.json")
        scored = _read(folder / "evaluation.json") if (folder / "evaluation.json").is_file() else {}
        quality = {text: [Measurement.from_dict(each) for each in found] for text, found in scored.items()}
        return cls(ledger, plan["total"], any(row["at_most"] for row in ledger["rows"]), quality)

    @property
    def compressed(self) -> list[dict[str, Any]]:
        """Rows that a method changed."""
        return [row for row in self.ledger["rows"] if row["method"]]

    def left_alone(self) -> dict[str, tuple[int, int]]:
        """How many tensors, and their bytes, by the reason why they were left as they are."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.ledger["rows"]:
            if not row["method"]:
                count, size = found.get(row["reason"], (0, 0))
                found[row["reason"]] = (count + 1, size + row["predicted_bytes"])
        return found

    def components(self) -> dict[str, float]:
        """Bits a compressed weight by what they store, over all compressed weights."""
        sums: dict[str, float] = {}
        total = sum(weights(row) for row in self.compressed)
        for row in self.compressed:
            for name, bits in row.get("component_bits", {}).items():
                sums[name] = sums.get(name, 0.0) + bits * weights(row) / total
        return sums

    def quality_lines(self) -> list[dict[str, str]]:
        """Every measurement in words: text, name, value with its error, protocol."""
        return [
            {
                "text": text,
                "name": measurement.name,
                "value": with_error(measurement.value, measurement.stderr, ".5g"),
                "protocol": measurement.protocol.describe(),
            }
            for text, found in self.quality.items()
            for measurement in found
        ]


def weights(row: Mapping[str, Any]) -> int:
    """Original number of weights of a row."""
    count = 1
    for size in row["shape"]:
        count *= size
    return count


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
