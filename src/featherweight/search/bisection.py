"""The largest setting that still holds, by halving."""

from __future__ import annotations

from collections.abc import Callable

from featherweight.errors import FeatherweightError


def bisect(
    low: float, high: float, holds: Callable[[float], bool], tolerance: float
) -> tuple[float | None, list[tuple[float, bool]]]:
    """Largest value in `[low, high]` that was seen to hold, as if everything below it held and everything above failed.

    Both ends come first: if `low` fails nothing is taken to hold, if `high` holds it is the answer. Then the interval
    between a value that holds and one that fails is halved until it is no wider than `tolerance`. Over integers, let
    `holds` round down and take a tolerance of 1.

    Args:
        low, high: the mild end and the harsh one.
        holds: asked once for each value.
        tolerance: largest distance of the answer from a value that fails.

    Returns:
        The value, or None; and every value that was asked for, in order, with its answer.

    Raises:
        FeatherweightError: `low` beyond `high`, or a tolerance that is not positive.
    """
    if not low <= high:
        raise FeatherweightError("the range is empty", found=f"{low} to {high}", expected="a low end below the high end")
    if not tolerance > 0:
        raise FeatherweightError("the tolerance must be positive", found=tolerance, expected="more than 0")
    asked: list[tuple[float, bool]] = []

    def ask(value: float) -> bool:
        asked.append((value, bool(holds(value))))
        return asked[-1][1]

    if not ask(low):
        return None, asked
    if low == high or ask(high):
        return high, asked
    while high - low > tolerance:
        middle = (low + high) / 2
        if not low < middle < high:  # the tolerance is below what floats can tell apart
            break
        low, high = (middle, high) if ask(middle) else (low, middle)
    return low, asked
