"""Statistics on disk under a content key, so that ten methods pay for one calibration."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from featherweight.statistics.halves import from_upper_half, upper_half
from featherweight.statistics.inputs import InputStatistics

#: A Hessian in a file: the half of it that tells the other.
HALF = "hessian_half"


def content_key(**facts: Any) -> str:
    """Hash of everything the statistics depend on: model, tokens, dtype, block, and the prefix they were taken behind."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class StatisticsStore:
    """A folder of `<key>.safetensors`, one per collected group of axes; of a Hessian, its upper half.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def room(self) -> Path | None:
        """The folder, there by now."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def load(self, key: str, needs: Mapping[str, frozenset[str]]) -> dict[str, InputStatistics] | None:
        """Statistics of every axis in `needs` if they are all stored, else None.

        An unreadable file counts as absent, and one that was saved under another key.
        """
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                counts: dict[str, int] = json.loads(file.metadata()["counts"])
                routed: dict[str, int] = json.loads(file.metadata().get("routed", "{}"))
                if file.metadata()["key"] != key or not needs.keys() <= counts.keys():
                    return None
                grouped: dict[str, dict[str, Any]] = {axis: {} for axis in needs}
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    axis, _, kind = name.rpartition("/")
                    if axis in grouped:
                        tensor = file.get_tensor(name)
                        grouped[axis].update({"hessian": from_upper_half(tensor)} if kind == HALF else {kind: tensor})
        except (SafetensorError, KeyError, ValueError, OSError):
            return None
        loaded = {
            axis: replace(InputStatistics.from_tensors(counts[axis], tensors), routed=routed.get(axis))
            for axis, tensors in grouped.items()
        }
        return loaded if all(loaded[axis].provides(needs[axis]) for axis in needs) else None

    def save(self, key: str, statistics: Mapping[str, InputStatistics]) -> None:
        """Keep `statistics` under `key`, atomically; their Hessians must be symmetric to the last bit (`InputStatistics.finished`)."""
        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{axis}/{HALF if kind == 'hessian' else kind}": (
                upper_half(tensor.cpu()) if kind == "hessian" else tensor.contiguous().cpu()
            )
            for axis, sums in statistics.items()
            for kind, tensor in sums.tensors().items()
        }
        counts = json.dumps({axis: sums.count for axis, sums in statistics.items()})
        routed = json.dumps({axis: sums.routed for axis, sums in statistics.items() if sums.routed is not None})
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        save_file(tensors, temporary, metadata={"counts": counts, "routed": routed, "key": key})
        Path(temporary).replace(path)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{key}.safetensors"
