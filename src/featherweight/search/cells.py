"""Finished pieces of work by what they were made from, in one JSON file: what a second run need not do again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.packed.files import write_text


class Cells:
    """JSON objects by what they were made from.

    Args:
        path: the file; made with the first cell.

    Raises:
        FeatherweightError: the file is there and holds no cells.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if not all(isinstance(cell, dict) and isinstance(cell.get("made"), dict) for cell in self._known.values()):
                raise ValueError("entries without what was made")
        except (ValueError, AttributeError) as problem:
            raise FeatherweightError(
                "the kept results cannot be read",
                found=f"{path}: {problem}",
                expected="cells of this version",
                fix="delete the file; everything in it is then made again",
            ) from None

    def get(self, made_from: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was made from `made_from`, now unless it is known; on disk, whole, before it is returned."""
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._known:
            made = json.loads(json.dumps(make()))  # what a later run would read
            self.path.parent.mkdir(parents=True, exist_ok=True)
            known = {**self._known, key: {"from": made_from, "made": made}}
            write_text(self.path, json.dumps(known, indent=1))
            self._known = known
        return dict(self._known[key]["made"])
