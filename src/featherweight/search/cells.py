"""Finished results in one JSON file, by what they were made from, so that a stopped comparison or search goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.packed.files import write_text


class Cells:
    """Finished results by what they were made from.

    Args:
        path: a JSON file; it comes into being with the first result.

    Raises:
        FeatherweightError: the file is not readable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self._cells = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as problem:
                raise FeatherweightError(
                    "the kept results cannot be read", found=f"{path}: {problem}", expected="the file as it was written",
                    fix="delete it; everything in it is then measured again",
                ) from None  # fmt: skip

    def get(self, made_from: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `made_from`, made now unless it is known; written, atomically, before it is returned."""
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._cells:
            self._cells[key] = {"made_from": made_from, "result": make()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(self._cells, indent=1))
        result: dict[str, Any] = self._cells[key]["result"]
        return result
