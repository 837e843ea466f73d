"""The lists of zero-shot tasks that papers average over, by name; each is scored by `acc`."""

from __future__ import annotations

from dataclasses import dataclass

#: The metric that the papers average; not `acc_norm`, which is per character.
METRIC = "acc"


@dataclass(frozen=True)
class TaskSet:
    """Tasks of lm-evaluation-harness that are averaged.

    Attributes:
        tasks: their names.
        source: who reports this mean.
    """

    tasks: tuple[str, ...]
    source: str


_WANDA = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
_QUIP = ("winogrande", "rte", "piqa", "arc_easy", "arc_challenge")

#: Named sets; none has the name of a task.
TASK_SETS: dict[str, TaskSet] = {
    "wanda": TaskSet(_WANDA, "Wanda, arXiv:2306.11695, table 2; the first 2000 questions each for 65B and 70B"),
    "pqp": TaskSet(_WANDA, "PQP, as Wanda"),
    "besa": TaskSet(
        ("piqa", "boolq", "hellaswag", "winogrande", "arc_easy", "arc_challenge"), "BESA, arXiv:2402.16880, table 2"
    ),
    "spqr": TaskSet(("winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge"), "SpQR, arXiv:2306.03078"),
    "quip": TaskSet(_QUIP, "QuIP#, arXiv:2402.04396"),
    "caldera": TaskSet(_QUIP, "CALDERA, arXiv:2405.18886"),
}
