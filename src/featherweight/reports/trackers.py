"""The three libraries behind `Tracking`; each is imported when a run is opened in it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Project of wandb, experiment of mlflow.
PROJECT = "featherweight"

_VALUE_CHARACTERS = 500  # of one mlflow parameter; longer ones are whole in its config.json


class Wandb:
    """A wandb run; offline on request, and where nobody is logged in.

    Args:
        title: of the run.
        folder: holds `wandb/`.
        offline: never reach the server.
    """

    def __init__(self, title: str, folder: Path, offline: bool) -> None:
        import wandb

        local = offline or not wandb.login(prompt=False, verify=False)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            name=title,
            dir=folder,
            mode="offline" if local else None,
            reinit="create_new",
            settings=wandb.Settings(quiet=True, console="off"),
        )
        self._axis = ""
        run = Path(self._run.dir).parent
        self.place = f"wandb sync {run}" if self._run.offline else str(self._run.url)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Into the run's config, whose sections grow."""
        for name, value in settings.items():
            known = self._run.config.get(name)
            grown = {**known, **value} if isinstance(known, Mapping) and isinstance(value, Mapping) else value
            self._run.config.update({name: grown}, allow_val_change=True)

    def point(self, axis: str, step: int, values: Mapping[str, float]) -> None:
        """A history row with its own axis, since wandb's step may not go back."""
        if axis != self._axis:
            self._run.define_metric("*", step_metric=axis)
            self._axis = axis
        self._run.log({axis: step, **values})

    def totals(self, values: Mapping[str, float]) -> None:
        """Into the summary."""
        self._run.summary.update(dict(values))

    def attach(self, path: Path) -> None:
        """A copy among the run's files."""
        copy = Path(self._run.dir) / path.name
        shutil.copyfile(path, copy)
        self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def close(self, failure: BaseException | None) -> None:
        """Exit code 1 and the error in the summary if it failed."""
        if failure is not None:
            self._run.summary["error"] = _told(failure)
        self._run.finish(exit_code=0 if failure is None else 1)


class Mlflow:
    """An mlflow run, in the server that is set (`MLFLOW_TRACKING_URI`) or a sqlite store in `folder`.

    Args:
        title: of the run.
        folder: holds `mlflow.db` and `mlflow-files/`.
        offline: the local store in any case.
    """

    def __init__(self, title: str, folder: Path, offline: bool) -> None:
        import mlflow

        local = offline or not mlflow.tracking.is_tracking_uri_set()
        if local:
            folder.mkdir(parents=True, exist_ok=True)
        place = f"sqlite:///{folder / 'mlflow.db'}" if local else mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=place, registry_uri=place)
        known = self._client.get_experiment_by_name(PROJECT)
        files = (folder / "mlflow-files").as_uri() if local else None
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT, artifact_location=files)
        self._id = self._client.create_run(experiment, run_name=title).info.run_id
        self._settings: dict[str, Any] = {}
        self.place = f"mlflow ui --backend-store-uri {place}" if local else f"{place}, run {self._id}"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """As parameters `recipe.steps.0.bits`, and whole as `config.json`."""
        from mlflow.entities import Param

        params = [Param(name, text[:_VALUE_CHARACTERS]) for name, text in _flat(settings)]
        for start in range(0, len(params), 100):  # a batch takes 100
            self._client.log_batch(self._id, params=params[start : start + 100])
        for name, value in settings.items():
            known = self._settings.get(name)
            self._settings[name] = {**known, **value} if isinstance(known, dict) and isinstance(value, Mapping) else value
        self._client.log_dict(self._id, self._settings, "config.json")

    def point(self, axis: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics at a step."""
        self._log(values, step)

    def totals(self, values: Mapping[str, float]) -> None:
        """Metrics with a single step."""
        self._log(values, 0)

    def attach(self, path: Path) -> None:
        """An artifact."""
        self._client.log_artifact(self._id, str(path))

    def close(self, failure: BaseException | None) -> None:
        """FINISHED, FAILED with the error as a tag, or KILLED."""
        if failure is not None:
            self._client.set_tag(self._id, "error", _told(failure))
        killed = isinstance(failure, KeyboardInterrupt)
        self._client.set_terminated(self._id, "FINISHED" if failure is None else "KILLED" if killed else "FAILED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


class TensorBoard:
    """A log directory of its own in `folder/tensorboard`; settings and errors are texts, files are not kept.

    Args:
        title: of the run, the start of the directory's name.
        folder: holds `tensorboard/`.
        offline: no difference; it never reaches for a network.
    """

    def __init__(self, title: str, folder: Path, offline: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        name = re.sub(r"[^\w.-]", "-", title)
        self._writer = SummaryWriter(
            str(folder / "tensorboard" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}")
        )
        self.place = f"tensorboard --logdir {folder / 'tensorboard'}"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """A text per section."""
        for name, value in settings.items():
            text = json.dumps(value, indent=1).replace("\n", "\n    ")
            self._writer.add_text(f"settings/{name}", f"    {text}")

    def point(self, axis: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def totals(self, values: Mapping[str, float]) -> None:
        """Scalars with a single step."""
        self.point("", 0, values)

    def attach(self, path: Path) -> None:
        """Nothing: tensorboard keeps no files."""

    def close(self, failure: BaseException | None) -> None:
        """The error is a text."""
        if failure is not None:
            self._writer.add_text("error", _told(failure))
        self._writer.close()


def _told(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"[:5000]


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested settings by dotted names."""
    parts: Any = None
    if isinstance(settings, Mapping):
        parts = settings.items()
    elif isinstance(settings, list | tuple):
        parts = enumerate(settings)
    if parts is None or not settings:
        yield prefix, str(settings)
        return
    for name, value in parts:
        yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
