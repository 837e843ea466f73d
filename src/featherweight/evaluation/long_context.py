"""Tasks that need what stands far back: their names as a user writes them, read before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featherweight.data.longbench import load_longbench
from featherweight.errors import FeatherweightError, nearest
from featherweight.evaluation import longbench, recall
from featherweight.evaluation.protocol import Measurement

#: From a model, its tokenizer, and `cache`, `length` and `progress` to measurements.
LongTask = Callable[..., list[Measurement]]


def is_long_context(name: str) -> bool:
    """Whether `find_long_tasks` reads this name."""
    return name.startswith((recall.PREFIX, longbench.PREFIX))


def find_long_tasks(names: Sequence[str], *, limit: int | None = None) -> list[LongTask]:
    """`recall:copy`, `recall:induction`, `recall:passkey`; `longbench:FILE` or `longbench:FOLDER`.

    Args:
        names: of tasks.
        limit: examples of each set at most.

    Raises:
        FeatherweightError: no such recall task, or what `load_longbench` raises.
    """
    found: list[LongTask] = []
    for name in names:
        rest = name.partition(":")[2]
        if name.startswith(longbench.PREFIX):
            found += [partial(_one, examples=examples) for examples in load_longbench(Path(rest), limit=limit)]
        elif rest in recall.TASKS:
            found.append(partial(recall.recall, name=rest, examples=limit))
        else:
            raise FeatherweightError(
                "no such recall task", found=name, expected=", ".join(recall.PREFIX + task for task in recall.TASKS),
                fix=f"did you mean {recall.PREFIX}{nearest(rest, recall.TASKS, 1)[0]}?",
            )  # fmt: skip
    return found


def _one(model: Any, tokenizer: Any, **settings: Any) -> list[Measurement]:
    return [longbench.longbench(model, tokenizer, **settings)]
