"""Tasks of lm-evaluation-harness: found by name, their questions read from the hub, its cache or local files."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError, nearest
from featherweight.evaluation.task_sets import TASK_SETS

#: Where lm-eval keeps tasks of our sets whose files are not named after them.
_FOLDERS = {"boolq": "super_glue/boolq", "rte": "glue/rte", "winogrande": "winogrande"}


@dataclass(frozen=True)
class Harness:
    """Tasks with their questions at hand, before any model is loaded; made by `load_tasks`.

    Attributes:
        tasks: lm-eval's task and group objects.
        sets: the named sets among what was asked for.
        fewshot, offline: as asked for.
        manager: lm-eval's task manager.
    """

    tasks: tuple[Any, ...]
    sets: tuple[str, ...]
    fewshot: int | None
    offline: bool
    manager: Any


def load_tasks(
    names: Sequence[str],
    *,
    fewshot: int | None = None,
    include_path: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
) -> Harness:
    """Find tasks and read their questions.

    Args:
        names: tasks, groups or tags of lm-eval, or named sets (`TASK_SETS`).
        fewshot: examples before each question; None for the tasks' own numbers.
        include_path: folder of further tasks, as lm-eval's YAML files.
        data: folder with `TASK.jsonl`, read in place of the hub's data and in its columns; `TASK.train.jsonl` beside it holds
            the examples of few-shot prompts.
        offline: never reach for the network: files, or what the cache of `datasets` holds.

    Raises:
        FeatherweightError: lm-eval is not installed, an unknown task, a missing file, columns that a task cannot read, data that
            are not to be had, or a number of examples that a task does not take.
    """
    require_library(names)
    for folder, what in ((include_path, "tasks"), (data, "questions")):
        if folder is not None and not folder.is_dir():
            raise FeatherweightError(f"no such folder of {what}", found=folder, expected="a folder")
    sets = tuple(name for name in names if name in TASK_SETS)
    wanted = list(dict.fromkeys(task for name in names for task in TASK_SETS.get(name, (name,))))
    manager = _manager(wanted, include_path)
    _check_names(wanted, manager)
    files = {name: _files(name, manager.task_index[name], data, fewshot) for name in wanted} if data is not None else {}
    with apart(offline):
        tasks = [task for name in wanted for task in _load(manager, name, files.get(name), fewshot, offline)]
    return Harness(tuple(tasks), sets, fewshot, offline, manager)


def require_library(names: Sequence[str]) -> None:
    """Refuse where lm-eval is not installed.

    Raises:
        FeatherweightError: naming the extra.
    """
    if find_spec("lm_eval") is None:
        raise FeatherweightError(
            f"{', '.join(names)}: tasks of lm-eval, which is not installed",
            found="no package lm_eval",
            expected="the extra featherweight[lm-eval]; without it: continuation, or a .json or .jsonl file of questions",
            fix="pip install 'featherweight[lm-eval]'",
        )


@contextmanager
def apart(offline: bool) -> Iterator[None]:
    """What lm-eval needs set for the whole process, put back afterwards: quiet loggers, no network, its seeds.

    The seeds matter while questions are read, too: some tasks shuffle their choices then.

    Args:
        offline: `datasets` and `huggingface_hub` read files and caches only.
    """
    import datasets
    import huggingface_hub.constants
    import numpy
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [place.HF_HUB_OFFLINE for place in places], [logger.level for logger in loggers]
    states = random.getstate(), numpy.random.get_state()
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        random.seed(DEFAULT_RANDOM_SEED)
        numpy.random.seed(DEFAULT_OTHER_SEED)
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        for place, value in zip(places, before[0], strict=True):
            place.HF_HUB_OFFLINE = value
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _manager(wanted: Sequence[str], include_path: Path | None) -> Any:
    """A task manager that knows `wanted`: from the folders that should hold them, a matter of a second, or from all."""
    from lm_eval import tasks

    root = Path(str(tasks.__file__)).parent
    own = [include_path] if include_path is not None else []
    few = {root / _FOLDERS[name] for name in wanted if name in _FOLDERS}
    plain = [name for name in wanted if name not in _FOLDERS and re.fullmatch(r"[\w.+-]+", name)]
    few |= {path.parent for name in plain for path in root.rglob(f"{name}.yaml")}
    manager = tasks.TaskManager(include_path=[*sorted(few), *own], include_defaults=False)
    if all(name in manager.task_index and manager.task_index[name].kind.name == "TASK" for name in wanted):
        return manager
    return tasks.TaskManager(include_path=own or None)


def _check_names(wanted: Sequence[str], manager: Any) -> None:
    for name in wanted:
        if name not in manager.task_index:
            raise FeatherweightError(
                f"no such task: {name}",
                found=f"not among lm-eval's {len(manager.all_tasks)}",
                expected=f"near: {', '.join(nearest(name, [*TASK_SETS, *manager.all_tasks]))}",
                fix="a task of your own: --include-path FOLDER with its YAML, or a .jsonl file of questions",
            )


def _load(manager: Any, name: str, files: dict[str, Path] | None, fewshot: int | None, offline: bool) -> list[Any]:
    """The objects of a name, a group's or a tag's tasks among them, with their questions."""
    try:
        loaded = manager.load([name if files is None else _definition(name, files)])
    except Exception as problem:  # of datasets, jinja2, the task's own code: no common parent
        raise _unreadable(name, files, offline, problem) from problem
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if fewshot and own == 0:
            raise FeatherweightError(
                f"{task.task_name} takes no examples", found=f"--fewshot {fewshot}", expected="0, as its definition says"
            )
        if files is not None and "train" not in files and (own if fewshot is None else fewshot):
            raise _no_examples(name, files["validation"], own)
    group = loaded.get("groups", {}).get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


def _definition(name: str, files: dict[str, Path]) -> dict[str, Any]:
    """A task's definition with its data in local files, as a group of one: lm-eval merges a member into the registered task."""
    train = "train" if "train" in files else None
    member = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}},
        "training_split": train,
        "fewshot_split": train,
        "validation_split": "validation",
        "test_split": None,
    }
    return {"group": f"{name} of local files", "task": [member]}


def _files(name: str, entry: Any, data: Path, fewshot: int | None) -> dict[str, Path]:
    """`validation`, and `train` if it is there, of a task in a folder of questions."""
    if entry.kind.name != "TASK":
        raise FeatherweightError(
            f"{name} is no single task with a definition in YAML, so it cannot read local files",
            found=entry.kind.name.lower().replace("_", " "),
            expected="a task such as arc_easy",
            fix="name its tasks one by one",
        )
    paths = {"validation": data / f"{name}.jsonl", "train": data / f"{name}.train.jsonl"}
    found = {split: path for split, path in paths.items() if path.is_file()}
    if "validation" not in found:
        raise FeatherweightError(
            f"no questions of {name} in {data}",
            found=", ".join(sorted(path.name for path in data.glob("*.jsonl"))) or "no .jsonl file",
            expected=paths["validation"].name,
        )
    if fewshot and "train" not in found:
        raise _no_examples(name, paths["validation"], fewshot)
    return found


def _no_examples(name: str, questions: Path, shots: int) -> FeatherweightError:
    return FeatherweightError(
        f"no examples for the few-shot prompts of {name}",
        found=f"{questions.name}, which is asked, and {shots} examples wanted",
        expected=f"{name}.train.jsonl beside it",
        fix="--fewshot 0",
    )


def _unreadable(name: str, files: dict[str, Path] | None, offline: bool, problem: Exception) -> FeatherweightError:
    first = f"{type(problem).__name__}: {str(problem).strip()}".splitlines()[0][:300]
    if files is None:
        return FeatherweightError(
            f"the questions of {name} are not to be had" + (", and offline was asked for" if offline else ""),
            found=first,
            expected="its data on the hub, in the cache or where its YAML says, in the columns that it names",
            fix=f"--tasks-data FOLDER with {name}.jsonl",
        )
    with files["validation"].open(encoding="utf-8") as lines:
        line = next(lines, "")
    try:
        columns = ", ".join(json.loads(line))
    except (ValueError, TypeError):
        columns = f"no JSON object in the first line: {line[:60]!r}"
    return FeatherweightError(
        f"{name} cannot read its questions from {files['validation']}",
        found=f"{columns}; {first}",
        expected="one question a line, in the columns of its data on the hub",
    )
