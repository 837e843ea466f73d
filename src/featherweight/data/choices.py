"""Multiple-choice questions: the shipped set, local files, and RACE's columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError

#: The shipped set: which passage goes on from here? Made from the held-out text by `benchmarks/make_choices.py`.
SHIPPED = "continuation"

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
        sha256: of the file.
    """

    name: str
    items: tuple[Question, ...]
    sha256: str


def load_questions(name: str) -> Questions:
    """The shipped set ("continuation"), or a file: JSON lines or one JSON list.

    Each question has `context`, `choices` and `answer` (an index), or RACE's `article`, `question`, `options` and `answer` (a
    letter).

    Raises:
        FeatherweightError: no such set or file, or columns that are missing or malformed (named).
    """
    if name == SHIPPED:
        with resources.as_file(resources.files("featherweight") / "assets" / "continuation.jsonl") as path:
            return _read(name, path)
    path = Path(name)
    if not path.is_file():
        raise FeatherweightError(
            f"no such questions: {name}", found=name, expected=f"{SHIPPED}, or a .json or .jsonl file", fix=f"use {SHIPPED}"
        )
    return _read(path.name, path)


def _read(name: str, path: Path) -> Questions:
    text = path.read_text(encoding="utf-8")
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except json.JSONDecodeError as problem:
        raise FeatherweightError(f"{path} is no JSON", found=str(problem), expected="JSON lines, or one list") from None
    items = tuple(_question(row, f"{path}, question {number}") for number, row in enumerate(rows, 1))
    if not items:
        raise FeatherweightError(f"{path} holds no questions", found="0 questions", expected="at least one")
    return Questions(name, items, hashlib.sha256(text.encode()).hexdigest())


def _question(row: Any, place: str) -> Question:
    columns = set(row) if isinstance(row, Mapping) else set()
    race = "article" in columns or "options" in columns
    missing = [column for column in (RACE if race else OWN) if column not in columns]
    if missing:
        raise FeatherweightError(
            f"wrong columns in {place}",
            found=f"{', '.join(sorted(columns)) or type(row).__name__}; missing {', '.join(missing)}",
            expected=f"{', '.join(OWN)}; or RACE's {', '.join(RACE)}",
        )
    choices = tuple(map(str, row["options" if race else "choices"]))
    answer = row["answer"]
    index = "ABCDEFGHIJ".find(answer.strip().upper()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if not isinstance(index, int) or not 0 <= index < len(choices) or len(choices) < 2:
        raise FeatherweightError(
            f"wrong answer in {place}", found=f"answer {answer!r} of {len(choices)} choices", expected="an index or a letter"
        )
    return Question(str(row["article" if race else "context"]), choices, index, str(row["question"]) if race else "")
