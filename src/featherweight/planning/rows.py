"""The rows of the table that dry-run, run, save, verify and report all read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One stored thing: a linear, the embedding, the head, or a parameter that is left alone.

    Attributes:
        module: full module path; a tied parameter's row names all its users in `reason`.
        kind: "linear", "embedding", "head", "parameter", "folded": a parameter that takes up a map of what it makes, or "tuned":
            one that is trained with its block.
        block: the stage it belongs to: the decoder block's path, "" outside of them, or the head's path where the head has a
            chain.
        chain: the methods' names in order; empty if left alone.
        description: of the final packed weight; None for parameters left alone.
        shape: of the original.
        original_bytes, predicted_bytes: before, and as planned.
        at_most: whether `predicted_bytes` is a bound rather than exact.
        shared: whether it is an even share of what the linears of its block store together, which is exact.
        reason: why it is left alone, who shares it, from what it was untied, or which maps it or its input takes.
        untied: whether the original shares this weight with another row; it then adds no original weights and bytes.
        measured: after the run: stored_bytes, relative_error, seconds, damping, ...
    """

    module: str
    kind: str
    block: str
    chain: tuple[str, ...]
    description: Mapping[str, Any] | None
    shape: tuple[int, ...]
    original_bytes: int
    predicted_bytes: int
    at_most: bool = False
    shared: bool = False
    reason: str = ""
    untied: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Original number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def storage(self) -> str:
        """The storage in words: `integer 4-bit g128 asymmetric`."""
        return describe_storage(self.description) if self.description else "as it is"

    @property
    def bytes(self) -> int:
        """Measured bytes where there are any, else predicted."""
        return int(self.measured.get("stored_bytes", self.predicted_bytes))

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over original weights."""
        return 8 * self.bytes / max(self.weights, 1)

    def as_dict(self) -> dict[str, Any]:
        """The stable `--json` form; further measured facts follow the fixed columns."""
        fixed = {
            "module": self.module,
            "kind": self.kind,
            "method": "+".join(self.chain) or None,
            "storage": self.storage,
            "predicted_bytes": self.predicted_bytes,
            "at_most": self.at_most,
            "shared": self.shared,
            "stored_bytes": self.measured.get("stored_bytes"),
            "bits_per_weight": self.bits_per_weight,
            "sparsity": self.measured.get("sparsity", 0.0),
            "relative_error": self.measured.get("relative_error"),
            "seconds": self.measured.get("seconds"),
            "shape": list(self.shape),
            "original_bytes": self.original_bytes,
            "reason": self.reason,
        }
        return {**fixed, **{name: value for name, value in self.measured.items() if name not in fixed}}


@dataclass(frozen=True)
class Totals:
    """Sums over rows.

    Attributes:
        linear_bits: bits per weight of the compressed linears.
        model_bits: bits per weight of everything, embeddings included.
        original_bytes, predicted_bytes: tensors of the whole model.
        file_bytes: of all weight files, headers included.
        nominal_bits: of the compressed linears as their papers count, where methods say so and after the run.
    """

    linear_bits: float
    model_bits: float
    original_bytes: int
    predicted_bytes: int
    file_bytes: int
    nominal_bits: float | None = None

    @classmethod
    def of(cls, rows: Iterable[Row], file_bytes: int) -> Totals:
        """Totals of a table."""
        rows = list(rows)
        compressed = [row for row in rows if row.chain]

        def bits(part: list[Row], weights: int) -> float:
            return 8 * sum(row.bytes for row in part) / max(weights, 1)

        nominal = [(row.measured["nominal_bits"], row.weights) for row in compressed if "nominal_bits" in row.measured]
        return cls(
            bits(compressed, sum(row.weights for row in compressed)),
            bits(rows, sum(row.weights for row in rows if not row.untied)),
            sum(row.original_bytes for row in rows),
            sum(row.bytes for row in rows),
            file_bytes,
            sum(each * weights for each, weights in nominal) / sum(weights for _, weights in nominal) if nominal else None,
        )


def describe_storage(description: Mapping[str, Any]) -> str:
    """A packed weight's description in words, nodes first."""
    inner = [describe_storage(value) for value in description.values() if isinstance(value, Mapping) and "kind" in value]
    words = [str(description["kind"])]
    words += [f"{side} {value['map']}" for side, value in description.items() if isinstance(value, Mapping) and "map" in value]
    if "element" in description:
        words.append(description["element"])
    if "rank" in description:
        words.append(f"rank {description['rank']}")
    if "bits" in description:
        words.append(f"{description['bits']}-bit")
    if "group_size" in description:
        group = description["group_size"]
        words.append(f"g{group}" if group else "per row")
    if "symmetric" in description:
        words.append("symmetric" if description["symmetric"] else "asymmetric")
    if "element" in description:
        words.append(f"{description['scale_dtype']} scales")
    if description.get("group_index"):
        words.append("indexed")
    return " ".join(words) + (f"({', '.join(inner)})" if inner else "")
