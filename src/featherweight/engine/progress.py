"""What a run says while it goes: plain events, drawn by whoever listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        stage: "start", "resume", "warning", "gather", "statistics reused", "ranked", "compressed", "block written", "saved", "verified".
        block: path of the block, "" outside of them.
        linear: for "compressed".
        error: relative output error, for "compressed".
        done, total: steps of the stage; blocks for "block written".
        detail: one sentence for people.
        measured: the row's measured columns, for "compressed".
    """

    stage: str
    block: str = ""
    linear: str = ""
    error: float | None = None
    done: int = 0
    total: int = 0
    detail: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)


def silent(event: Event) -> None:
    """Listen to nothing."""
