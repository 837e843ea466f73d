"""What a run says while it goes: plain events, drawn by whoever listens."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    stage: str
    block: str = ""
    linear: str = ""
    error: float | None = None
    done: int = 0
    total: int = 0
    detail: str = ""


def silent(event: Event) -> None:
    """Listen to nothing."""
