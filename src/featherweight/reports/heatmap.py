"""Layers by linears as a coloured table: it is read with script or without, and by people who see colours otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: From small to large: the cividis map, which keeps its order in any colour vision and in grey.
SCALE = ("#00224e", "#213a6f", "#4c556c", "#6e7074", "#918c79", "#b9ab70", "#dfca57", "#fee838")

_PLACE = re.compile(r"^(.*?\d+)\.(.+)$")


@dataclass(frozen=True)
class Quantity:
    """A number of a ledger row.

    Attributes:
        key: in the row.
        title: for people.
        form: of a cell; "e" for a short exponent.
        logarithmic: whether colours follow its logarithm.
        worst: whether a cell of several linears (experts) shows the largest rather than the mean.
    """

    key: str
    title: str
    form: str
    logarithmic: bool = False
    worst: bool = False

    def written(self, value: float) -> str:
        """A value in the form of the cells."""
        if self.form != "e" or value == 0:
            return format(value, ".3g" if self.form == "e" else self.form)
        power = math.floor(math.log10(abs(value)))
        digits = f"{value / 10**power:.1f}"
        return f"1.0e{power + 1}" if digits == "10.0" else f"{digits}e{power}"


@dataclass(frozen=True)
class Cell:
    """What one linear of one layer shows: text, colours, and what it says when pointed at."""

    text: str
    colour: str
    ink: str
    title: str


@dataclass(frozen=True)
class Heatmap:
    """A quantity over a model.

    Attributes:
        quantity: which.
        columns: linears, by the last part of their name where that tells them apart.
        rows: layer's name and cells; None where the layer has no such linear, or it was left alone.
        low, high: of the colours, written; equal where all cells are.
    """

    quantity: Quantity
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    low: str
    high: str

    @property
    def uniform(self) -> bool:
        """Whether all cells read the same."""
        return self.low == self.high


def heatmap(quantity: Quantity, rows: Iterable[Mapping[str, Any]]) -> Heatmap | None:
    """The map of a quantity over the rows of a ledger that have it and lie in a layer; None without any."""
    places: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in rows:
        place, value = _PLACE.match(row["module"]), row.get(quantity.key)
        if place and isinstance(value, int | float) and math.isfinite(value):
            column = re.sub(r"\b\d+\b", "*", place[2])  # experts share a column
            places.setdefault((place[1], column), []).append((row["module"], float(value)))
    if not places:
        return None
    values = {place: _of_several(quantity, [value for _, value in found]) for place, found in places.items()}
    low, high = min(values.values()), max(values.values())
    layers, columns = list(dict.fromkeys(layer for layer, _ in places)), list(dict.fromkeys(column for _, column in places))

    def cell(layer: str, column: str) -> Cell | None:
        if (layer, column) not in places:
            return None
        found, value = places[layer, column], values[layer, column]
        share = _share(quantity, value, low, high)
        colour = SCALE[round(share * (len(SCALE) - 1))]
        several = f" ({len(found)} linears, {'the largest' if quantity.worst else 'their mean'})" if len(found) > 1 else ""
        title = f"{found[0][0]}{several}: {value:.5g}"
        return Cell(quantity.written(value), colour, "#000" if share > 0.45 else "#fff", title)

    body = [(_number(layer), [cell(layer, column) for column in columns]) for layer in layers]
    return Heatmap(quantity, _short(columns), body, quantity.written(low), quantity.written(high))


def _of_several(quantity: Quantity, values: list[float]) -> float:
    return max(values) if quantity.worst else sum(values) / len(values)


def _share(quantity: Quantity, value: float, low: float, high: float) -> float:
    """Where a value lies between the smallest and the largest, 0 to 1; on a logarithmic scale no lower than 1e-12."""
    if quantity.logarithmic:
        value, low, high = (math.log(max(each, 1e-12)) for each in (value, low, high))
    return (value - low) / (high - low) if high > low else 0.0


def _number(layer: str) -> str:
    """`model.layers.3` as `3`."""
    return layer.rsplit(".", 1)[-1]


def _short(columns: Sequence[str]) -> list[str]:
    last = [column.rsplit(".", 1)[-1] for column in columns]
    return last if len(set(last)) == len(last) else list(columns)
