"""A weight as a sum of parts, each fitted in turn to what the others leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from featherweight.solvers.low_rank import Rounded

#: Fits a part to what is left for it, `[out, in]`; the second argument holds the other parts as they stand.
Update = Callable[[Tensor, Mapping[str, Rounded]], Rounded]


@dataclass(frozen=True)
class Alternated:
    """The best of all states in which every part had been fitted.

    Attributes:
        parts: by name.
        error: as measured.
        path: the smallest error in every round.
        round: in which the best state was reached, from 1.
    """

    parts: Mapping[str, Rounded]
    error: float
    path: tuple[float, ...]
    round: int


def alternate(
    weight: Tensor,
    updates: Mapping[str, Update],
    measure: Callable[[Tensor], float],
    rounds: int,
    start: Mapping[str, Rounded] | None = None,
) -> Alternated:
    """`W ≈ Σ parts`: in every round each part is fitted to `W` less the others; the best state is kept.

    A state counts once every part was fitted or given, so no part is left at 0 because that happened to be better so far.

    Args:
        weight: `W [out, in]`.
        updates: in the order in which they run.
        measure: error of `W − Σ parts`.
        rounds: at least 1.
        start: parts that are there before the first round.
    """
    parts: dict[str, Rounded] = dict(start or {})
    values = {name: part.dequantize() for name, part in parts.items()}
    best: Alternated | None = None
    path: list[float] = []
    for number in range(1, rounds + 1):
        seen: list[float] = []
        for name, update in updates.items():
            rest = weight - sum(value for other, value in values.items() if other != name)
            parts[name] = update(rest, parts)
            values[name] = parts[name].dequantize()
            if len(parts) < len(updates):
                continue
            error = measure(rest - values[name])
            seen.append(error)
            if best is None or error < best.error:
                best = Alternated(dict(parts), error, (), number)
        path.append(min(seen))
    assert best is not None
    return Alternated(best.parts, best.error, tuple(path), best.round)
