"""Runs as experiment trackers keep them: wandb, mlflow, tensorboard; each an optional library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from featherweight.errors import FeatherweightError, nearest
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource
from featherweight.version import __version__

#: What each tracker imports; `pip install 'featherweight[NAME]'` brings it.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "tensorboard": ("tensorboard",),
}


class Tracker(Protocol):
    """One run in one library.

    Attributes:
        place: where its numbers are, for people.
    """

    place: str

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Add nested settings to what the run was made with."""

    def point(self, axis: str, step: int, values: Mapping[str, float]) -> None:
        """One step of curves; `axis` names the steps, in one way for the whole run."""

    def totals(self, values: Mapping[str, float]) -> None:
        """Numbers of the whole run."""

    def attach(self, path: Path) -> None:
        """Keep a small file, where the library keeps files."""

    def close(self, failure: BaseException | None) -> None:
        """End the run, as failed if something was raised in it."""


@dataclass(frozen=True)
class Tracking:
    """Which trackers follow the runs of a command; checked when it is made, opened by `run`.

    Attributes:
        names: of `LIBRARIES`; none tracks nothing.
        folder: for what is kept locally: wandb's runs, mlflow's sqlite store, tensorboard's logs.
        offline: reach no server: wandb offline, mlflow's local store even if a server is set.
        say: called with a line for people.

    Raises:
        FeatherweightError: no such tracker, or its library is not installed.
    """

    names: Sequence[str] = ()
    folder: Path = Path("tracking")
    offline: bool = False
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        """Check the names and that their libraries are there."""
        for name in self.names:
            if name not in LIBRARIES:
                raise FeatherweightError(
                    f"no such tracker: {name}", found=name, expected=", ".join(LIBRARIES), fix=nearest(name, LIBRARIES, 1)[0]
                )
            missing = [library for library in LIBRARIES[name] if not _installed(library)]
            if missing:
                raise FeatherweightError(
                    f"tracking with {name} needs a library that is not installed",
                    found=f"no {', '.join(missing)}",
                    expected=f"the extra featherweight[{name}]",
                    fix=f"pip install 'featherweight[{name}]'",
                )
        if self.names and self.folder.exists() and not self.folder.is_dir():
            raise FeatherweightError("the tracking folder is a file", found=self.folder, expected="a folder, new or not")

    @contextmanager
    def run(self, verb: str, model: ModelSource, settings: Mapping[str, Any]) -> Iterator[Run]:
        """A run in every tracker; closed at the end, as failed if an exception passes.

        Args:
            verb, model: what is done with which model; they name the run.
            settings: nested plain values that it was made with; the model's name and fingerprint are added.

        Raises:
            FeatherweightError: a tracker that cannot be opened.
        """
        run = Run(self.say)
        try:
            for name in dict.fromkeys(self.names):
                run.trackers.append(self._open(name, f"{verb} {Path(model.name).name}"))
            if run.trackers:
                told = {"name": model.name, "fingerprint": model.fingerprint()}
                run.configure({"verb": verb, "featherweight": __version__, "model": told, **settings})
            yield run
        except BaseException as problem:
            run.close(problem)
            raise
        run.close(None)

    def _open(self, name: str, title: str) -> Tracker:
        from featherweight.reports import trackers

        openers: dict[str, Callable[[str, Path, bool], Tracker]] = {
            "wandb": trackers.Wandb,
            "mlflow": trackers.Mlflow,
            "tensorboard": trackers.TensorBoard,
        }
        try:
            return openers[name](title, self.folder.absolute(), self.offline)
        except Exception as problem:
            raise FeatherweightError(
                f"{name} cannot open a run",
                found=f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}",
                expected=f"a store or server that takes runs, or a folder to write to ({self.folder})",
                fix="--offline keeps the run on this machine, --track-folder elsewhere on it",
            ) from problem


class Run:
    """One run in all its trackers. A tracker that fails is said and left out; the work itself goes on."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.trackers: list[Tracker] = []
        self._say = say

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Add nested settings; what JSON does not know becomes its text."""
        plain = json.loads(json.dumps(settings, default=str))
        self._each(lambda tracker: tracker.configure(plain))

    def point(self, axis: str, step: int, values: Mapping[str, float | None]) -> None:
        """One step of curves; what is None is left out."""
        given = {metric_name(name): float(value) for name, value in values.items() if value is not None}
        self._each(lambda tracker: tracker.point(axis, step, given))

    def totals(self, values: Mapping[str, float | None]) -> None:
        """Numbers of the whole run; what is None is left out."""
        given = {metric_name(name): float(value) for name, value in values.items() if value is not None}
        self._each(lambda tracker: tracker.totals(given))

    def measured(self, label: str, measurements: Iterable[Measurement]) -> None:
        """Measurements as `LABEL/NAME`, or `NAME`, with their standard errors, and their protocols among the settings."""
        for each in measurements:
            name = f"{label}/{each.name}" if label else each.name
            self.totals({name: each.value, f"{name}_stderr": each.stderr})
            self.configure({"protocol": {metric_name(name): each.protocol.as_dict()}})

    def attach(self, *paths: Path) -> None:
        """Keep small files, in the trackers that keep files."""
        for path in paths:
            self._each(lambda tracker, path=path: tracker.attach(path))  # type: ignore[misc]

    def close(self, failure: BaseException | None) -> None:
        """End the run in every tracker."""
        self._each(lambda tracker: tracker.close(failure))
        for tracker in self.trackers:
            self._say(f"tracked: {tracker.place}")

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                action(tracker)
            except Exception as problem:  # a tracker's trouble must not cost the user the run
                self.trackers.remove(tracker)
                self._say(f"warning: tracking stopped, the run goes on ({tracker.place}): {problem}")


def metric_name(name: str) -> str:
    """`name` with what some tracker refuses in a metric's name replaced: a file's path becomes its name."""
    parts = [re.sub(r"[^\w. -]", "_", part) for part in name.split("/")]
    return "/".join(part for part in parts if part.strip("."))


def _installed(library: str) -> bool:
    spec = find_spec(library)
    return spec is not None and spec.origin is not None  # a folder of that name in the working directory is no library
