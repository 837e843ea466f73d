"""Amounts as people write them: `8GiB`, `120MB`, `32k`."""

from __future__ import annotations

import re

from featherweight.errors import FeatherweightError

BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)")


def parse_bytes(text: str) -> int:
    """`8GiB`, `120 MB`, `1e6`: bytes; MB counts thousands, MiB counts 1024s.

    Raises:
        FeatherweightError: no number, or an unknown unit.
    """
    number, unit = split_amount(text)
    units = {name.lower(): size for name, size in BYTES.items()}
    if unit.lower() not in ("", *units):
        raise FeatherweightError(
            "unknown unit of bytes", found=text, expected=", ".join(BYTES), fix=f"{number:g}GiB, or {number:g}GB for 10^9"
        )
    return round(number * units.get(unit.lower(), 1))


def parse_tokens(text: str) -> int:
    """`4096` or `32k`: tokens; k is 1024, as in the names of models.

    Raises:
        FeatherweightError: no whole number of at least 1, or an unknown unit.
    """
    number, unit = split_amount(text)
    if unit.lower() not in ("", "k", "m") or number * 1024 != int(number * 1024) or number <= 0:
        raise FeatherweightError("no number of tokens", found=text, expected="a whole number; k stands for 1024", fix="32k")
    return round(number * {"": 1, "k": 2**10, "m": 2**20}[unit.lower()]) or 1


def split_amount(text: str) -> tuple[float, str]:
    """The number and its unit, which may be "".

    Raises:
        FeatherweightError: something else.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise FeatherweightError("no amount", found=text, expected="a number and perhaps a unit", fix="8GiB, 120MB, 32k")
    return float(match.group(1)), match.group(2)
