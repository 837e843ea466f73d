"""The one exception users see: what is wrong, what was found, what was expected, the nearest fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatherweightError(Exception):
    """An error that teaches.

    Args:
        error: what went wrong, one sentence.
        found: what was found.
        expected: what was expected instead.
        fix: the nearest thing to do about it.
    """

    def __init__(self, error: str, *, found: object = "", expected: object = "", fix: str = "") -> None:
        self.error, self.found, self.expected, self.fix = error, str(found), str(expected), fix
        parts = [error]
        parts += [f"{label}: {text}" for label, text in (("found", found), ("expected", expected), ("fix", fix)) if str(text)]
        super().__init__("\n  ".join(parts))

    def as_dict(self) -> dict[str, str]:
        """The `--json` form: `{error, found, expected, fix}`."""
        return {"error": self.error, "found": self.found, "expected": self.expected, "fix": self.fix}


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The `count` candidates closest to `name`, best first; never empty while there are candidates."""
    pool = list(dict.fromkeys(candidates))
    return difflib.get_close_matches(name, pool, n=count, cutoff=0.0)
