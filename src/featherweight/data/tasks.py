"""RTE and WinoGrande with their training questions: from the hub, or from local files in the data sets' own columns."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from featherweight.data.hub import hub_file, parquet_rows
from featherweight.data.readers import existing_file, json_rows, read_text, suffix_of
from featherweight.errors import FeatherweightError

Split = Literal["train", "validation"]

SUFFIXES = (".jsonl", ".json", ".tsv", ".parquet")

#: How files of a split begin, in a folder as the data sets' authors publish it.
STEMS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "dev")}

HUB = "hub"


@dataclass(frozen=True)
class Example:
    """A question whose possible answers are texts, of which a part is judged.

    Attributes:
        ways: context and continuation of each answer; the likelihood of the continuation decides.
        answer: index of the right one.
    """

    ways: tuple[tuple[str, str], ...]
    answer: int


@dataclass(frozen=True)
class Examples:
    """One split of a task.

    Attributes:
        name: where it comes from.
        items: in order.
        sha256: of the items, whatever file held them.
    """

    name: str
    items: tuple[Example, ...]
    sha256: str


@dataclass(frozen=True)
class Task:
    """How a task's rows become examples.

    Attributes:
        columns: sets of column names, one of which a row must have.
        read: a row's example.
        repository: of the data set on the hub.
        files: of the splits there, as the hub converted them.
    """

    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any]], Example]
    repository: str
    files: Mapping[Split, str]


def _rte(row: Mapping[str, Any]) -> Example:
    first, second = (row["sentence1"], row["sentence2"]) if "sentence1" in row else (row["premise"], row["hypothesis"])
    context = f"{first}\nQuestion: {second} True or False?\nAnswer:"
    answer = {"0": 0, "entailment": 0, "1": 1, "not_entailment": 1}[str(row["label"])]
    return Example(((context, " True"), (context, " False")), answer)


def _winogrande(row: Mapping[str, Any]) -> Example:
    before, blank, after = str(row["sentence"]).partition("_")
    if not blank or not after.strip():
        raise KeyError("a sentence without a blank, _, and words after it")
    ways = [(before + str(row[option]), f" {after.strip()}") for option in ("option1", "option2")]
    return Example((ways[0], ways[1]), {"1": 0, "2": 1}[str(row["answer"])])


#: Prompts as in lm-evaluation-harness: RTE asks "True or False?"; WinoGrande compares how likely what follows the blank is.
TASKS: dict[str, Task] = {
    "rte": Task(
        (("sentence1", "sentence2", "label"), ("premise", "hypothesis", "label")), _rte, "nyu-mll/glue",
        {"train": "rte/train/0000.parquet", "validation": "rte/validation/0000.parquet"},
    ),
    "winogrande": Task(
        (("sentence", "option1", "option2", "answer"),), _winogrande, "allenai/winogrande",
        {"train": "winogrande_xl/train/0000.parquet", "validation": "winogrande_xl/validation/0000.parquet"},
    ),
}  # fmt: skip


def load_examples(task: str, split: Split, data: str = HUB, *, offline: bool = False) -> Examples:
    """One split of a task of `TASKS`.

    Args:
        data: "hub"; a folder with the files of both splits (`train.tsv` and `dev.tsv` of GLUE, `train_xl.jsonl` and
            `dev.jsonl` of WinoGrande, `train.jsonl` and `val.jsonl` of SuperGLUE, …); or the split's file.
        offline: use local and cached files only.

    Raises:
        FeatherweightError: nothing there, more than one file of a split, or rows without the columns or without an answer.
    """
    known = TASKS[task]
    if data == HUB:
        fix = f"give a folder with train and dev files, columns {', '.join(known.columns[0])}: --data FOLDER"
        path = hub_file(known.repository, known.files[split], revision="refs/convert/parquet", offline=offline, fix=fix)
    else:
        path = Path(data)
        path = _of_split(path, split) if path.is_dir() else path
    items = tuple(_example(known, row, f"{path.name}, row {number}") for number, row in enumerate(_rows(path), 1))
    if not items:
        raise FeatherweightError(f"{path} holds no questions", found="0 rows", expected="at least one")
    digest = hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()
    return Examples(f"{known.repository} {split}" if data == HUB else path.name, items, digest)


def _of_split(folder: Path, split: Split) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and suffix_of(path) in SUFFIXES]
    found = [path for path in files if path.name.lower().startswith(STEMS[split])]
    if len(found) != 1:
        raise FeatherweightError(
            f"no one file for {split} in {folder}", found=", ".join(path.name for path in found or files) or "no such files",
            expected=f"one {' or '.join(STEMS[split])}* file ({', '.join(SUFFIXES)})", fix="name the files: --data TRAIN --validation FILE",
        )  # fmt: skip
    return found[0]


def _rows(path: Path) -> Sequence[Any]:
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return parquet_rows(existing_file(path))
    if suffix == ".tsv":
        return list(csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    if suffix in (".jsonl", ".json"):
        return json_rows(path)
    raise FeatherweightError(f"unknown kind of file: {path.name}", found=suffix, expected=", ".join(SUFFIXES))


def _example(task: Task, row: Any, place: str) -> Example:
    columns = set(row) if isinstance(row, Mapping) else set()
    if not any(columns >= set(names) for names in task.columns):
        raise FeatherweightError(
            f"wrong columns in {place}", found=", ".join(sorted(map(str, columns))) or type(row).__name__,
            expected="; or ".join(", ".join(names) for names in task.columns),
        )  # fmt: skip
    try:
        return task.read(row)
    except KeyError as missing:
        raise FeatherweightError(
            f"wrong row in {place}", found=str(missing.args[0]) or "no answer", expected="an answer as the data set writes it",
            fix="take a split with answers: train, validation or dev; test has none",
        ) from None  # fmt: skip
