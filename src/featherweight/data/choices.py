"""Multiple-choice questions: the shipped set, RACE from the hub, and local files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from featherweight.data.hub import hub_file, parquet_rows
from featherweight.data.readers import existing_file, json_rows, suffix_of
from featherweight.errors import FeatherweightError, nearest

#: The shipped set: which passage goes on from here? Made from the held-out text by `benchmarks/make_choices.py`.
SHIPPED = "continuation"

#: RACE's test questions of two kinds of schools (arXiv:1704.04683): their files on the hub, as it converted them.
RACE_SETS = {"race-high": "high/test/0000.parquet", "race-middle": "middle/test/0000.parquet"}
RACE_REPOSITORY, RACE_REVISION = "ehovy/race", "refs/convert/parquet"

SUFFIXES = (".json", ".jsonl", ".parquet")
FORMS = f"{SHIPPED}, {', '.join(RACE_SETS)} (also NAME:FILE), or a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"

#: Columns of a file of ours, and of RACE.
OWN, RACE = ("context", "choices", "answer"), ("article", "question", "options", "answer")


@dataclass(frozen=True)
class Question:
    """A text, possible ways to go on, and the right one.

    Attributes:
        context: what comes before the choice.
        choices: at least two.
        answer: index of the right one.
        question: of RACE: asked after the article (`context`); "" elsewhere.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    question: str = ""


@dataclass(frozen=True)
class Questions:
    """A set of questions.

    Attributes:
        name: as asked for.
        items: in order.
        sha256: of the questions, whatever file held them.
    """

    name: str
    items: tuple[Question, ...]
    sha256: str


def is_own(name: str) -> bool:
    """Whether `load_questions` reads this name: the shipped set, RACE by school, or a file."""
    return name == SHIPPED or name.partition(":")[0] in RACE_SETS or suffix_of(Path(name)) in SUFFIXES or Path(name).is_file()


def load_questions(name: str, *, offline: bool = False) -> Questions:
    """The shipped set ("continuation"), RACE's test set, or a file: JSON lines, one JSON list, or parquet.

    Each question has `context`, `choices` and `answer` (an index), or RACE's `article`, `question`, `options` and `answer` (a
    letter).

    Args:
        name: "continuation"; "race-high" or "race-middle", from the hub; `race-high:PATH`, a local copy of it; or a file.
        offline: use local and cached files only.

    Raises:
        FeatherweightError: no such set or file, not to be had offline, or columns that are missing or malformed (named).
    """
    race, colon, file = name.partition(":")
    if race in RACE_SETS:
        if colon and not file:
            raise FeatherweightError(f"{name!r} names no file", found=name, expected=f"{race}:PATH")
        return _read(race, Path(file) if file else _race(race, offline), race=True)
    if name == SHIPPED:
        with resources.as_file(resources.files("featherweight") / "assets" / "continuation.jsonl") as path:
            return _read(name, path)
    path = Path(name)
    if not path.is_file():
        raise FeatherweightError(
            f"no such questions: {name}", found=name, expected=FORMS, fix=f"use {nearest(name, (SHIPPED, *RACE_SETS), 1)[0]}"
        )
    return _read(path.name, path)


def _race(name: str, offline: bool) -> Path:
    fix = f"give a local copy, .jsonl or .parquet with the columns {', '.join(RACE)}: {name}:PATH"
    return hub_file(RACE_REPOSITORY, RACE_SETS[name], revision=RACE_REVISION, offline=offline, fix=fix)


def _read(name: str, path: Path, *, race: bool = False) -> Questions:
    rows = parquet_rows(existing_file(path)) if suffix_of(path) == ".parquet" else json_rows(path)
    items = tuple(_question(row, f"{path}, question {number}", race) for number, row in enumerate(rows, 1))
    if not items:
        raise FeatherweightError(f"{path} holds no questions", found="0 questions", expected="at least one")
    return Questions(name, items, hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest())


def _question(row: Any, place: str, race_alone: bool) -> Question:
    columns = set(row) if isinstance(row, Mapping) else set()
    race = race_alone or "article" in columns or "options" in columns
    missing = [column for column in (RACE if race else OWN) if column not in columns]
    if missing:
        raise FeatherweightError(
            f"wrong columns in {place}",
            found=f"{', '.join(sorted(columns)) or type(row).__name__}; missing {', '.join(missing)}",
            expected=f"{'' if race_alone else ', '.join(OWN) + '; or '}RACE's {', '.join(RACE)}",
        )
    choices = tuple(map(str, row["options" if race else "choices"]))
    answer = row["answer"]
    index = "ABCDEFGHIJ".find(answer.strip().upper()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if not isinstance(index, int) or not 0 <= index < len(choices) or len(choices) < 2:
        raise FeatherweightError(
            f"wrong answer in {place}", found=f"answer {answer!r} of {len(choices)} choices", expected="an index or a letter"
        )
    return Question(str(row["article" if race else "context"]), choices, index, str(row["question"]) if race else "")
