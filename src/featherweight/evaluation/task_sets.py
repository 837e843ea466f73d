"""The zero-shot tasks that papers average, by name."""

from __future__ import annotations

#: The metric that the papers average; not `acc_norm`, which is per character.
METRIC = "acc"

_WANDA = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
_QUIP = ("winogrande", "rte", "piqa", "arc_easy", "arc_challenge")

#: Tasks of lm-evaluation-harness; no set has the name of a task.
TASK_SETS: dict[str, tuple[str, ...]] = {
    "wanda": _WANDA,  # arXiv:2306.11695; the first 2000 questions of each for 65B and 70B
    "pqp": _WANDA,  # the PQP seed
    "besa": ("piqa", "boolq", "hellaswag", "winogrande", "arc_easy", "arc_challenge"),  # arXiv:2402.16880
    "spqr": ("winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge"),  # arXiv:2306.03078
    "quip": _QUIP,  # QuIP#, arXiv:2402.04396
    "caldera": _QUIP,  # arXiv:2405.18886
}
