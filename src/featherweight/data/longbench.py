"""LongBench from local files: long texts, questions, and what is known of each set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from featherweight.data.readers import read_text
from featherweight.errors import FeatherweightError, nearest

COLUMNS = ("input", "context", "answers", "dataset")


@dataclass(frozen=True)
class LongSet:
    """What is known of a set of LongBench (arXiv:2308.14508).

    Attributes:
        name: as its files call it.
        prompt: with {context} and {input}.
        tokens: most new ones of an answer.
        metric: "f1", "rouge_l", "classes", "count", "retrieval" or "code".
        first_line: whether the rest of an answer is dropped before scoring.
    """

    name: str
    prompt: str
    tokens: int
    metric: str
    first_line: bool = False


@dataclass(frozen=True)
class LongExample:
    """One question.

    Attributes:
        prompt: filled in.
        answers: each right.
        classes: of a set that classifies.
    """

    prompt: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongExamples:
    """The questions of one set.

    Attributes:
        kind: the set.
        items: in the file's order.
        sha256: of prompts and answers.
    """

    kind: LongSet
    items: tuple[LongExample, ...]
    sha256: str


def long_sets() -> dict[str, LongSet]:
    """Every set with a prompt here: the English and code ones."""
    text = (resources.files("featherweight") / "assets" / "longbench.yaml").read_text(encoding="utf-8")
    return {name: LongSet(name, **told) for name, told in yaml.safe_load(text).items()}


def load_longbench(path: Path, *, limit: int | None = None) -> list[LongExamples]:
    """The sets in a `.jsonl` file, or in all those of a folder; LongBench-E's names lose their `_e`.

    Args:
        path: a file, or a folder.
        limit: the first so many questions of each set.

    Raises:
        FeatherweightError: nothing there, lines that are no JSON, columns missing, or a set without a prompt here.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FeatherweightError(
            "no LongBench files", found=path, expected="a .jsonl file of LongBench, or a folder of them",
            fix="unpack data.zip of the data set THUDM/LongBench",
        )  # fmt: skip
    sets, found = long_sets(), dict[str, list[LongExample]]()
    for file in files:
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                name, example = _example(line, f"{file}, line {number}", sets)
                found.setdefault(name, []).append(example)
    if not found:
        raise FeatherweightError(f"{path} holds no questions", found="empty files", expected="at least one line")
    return [_examples(sets[name], items[:limit]) for name, items in sorted(found.items())]


def _examples(kind: LongSet, items: list[LongExample]) -> LongExamples:
    told = json.dumps([[item.prompt, item.answers, item.classes] for item in items])
    return LongExamples(kind, tuple(items), hashlib.sha256(told.encode()).hexdigest())


def _example(line: str, place: str, sets: Mapping[str, LongSet]) -> tuple[str, LongExample]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as problem:
        raise FeatherweightError(f"{place} is no JSON", found=str(problem), expected="a JSON object a line") from None
    missing = [column for column in COLUMNS if not isinstance(row, dict) or column not in row]
    if missing:
        raise FeatherweightError(
            f"wrong columns in {place}", found=f"missing {', '.join(missing)}", expected=", ".join(COLUMNS)
        )
    name = str(row["dataset"]).removesuffix("_e")
    if name not in sets:
        raise FeatherweightError(
            f"{place} is of a set without a prompt here", found=name, expected=", ".join(sets),
            fix=f"did you mean {nearest(name, sets, 1)[0]}? The Chinese sets are not offered",
        )  # fmt: skip
    prompt = (
        sets[name].prompt.replace("{input}", "\0").replace("{context}", str(row["context"])).replace("\0", str(row["input"]))
    )
    answers, classes = tuple(map(str, row["answers"])), tuple(map(str, row.get("all_classes") or ()))
    if not answers or (sets[name].metric == "classes" and not classes):
        raise FeatherweightError(
            f"{place} has nothing to score by", found=f"answers {row['answers']}", expected="answers, classes"
        )
    return name, LongExample(prompt, answers, classes)
