"""What verbs print: one JSON object on stdout, or text; progress goes to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherweight.engine.progress import Event


def print_json(result: dict[str, Any]) -> None:
    """The stable contract: one object."""
    print(json.dumps(result, default=str))


def note(line: str) -> None:
    """A line of progress."""
    import sys

    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[Event], None]]:
    """A bar over blocks with the last linear, its error and the time left; plain lines where there is no terminal."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    if not sys.stderr.isatty():
        yield lambda event: _line(console, event)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("blocks", total=None, last="")

        def draw(event: Event) -> None:
            if event.stage == "start":
                bar.update(task, total=event.total, description=event.detail)
            elif event.stage == "compressed":
                error = "" if event.error is None else f" error {event.error:.2e}"
                bar.update(task, last=event.linear + error)
            elif event.stage == "gather":
                bar.update(task, last=f"{event.block} batch {event.done}/{event.total}")
            elif event.stage == "block written":
                bar.update(task, completed=event.done)
            else:
                _line(bar.console, event)

        yield draw


@contextmanager
def counting_bar(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for `progress(done, total)`; None where there is no terminal."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(console: Any, event: Event) -> None:
    if event.stage in ("gather", "compressed"):
        return
    place = f" {event.block}" if event.block else ""
    count = f" {event.done}/{event.total}" if event.total and event.done else ""
    console.print(f"{event.stage}{place}{count}{': ' + event.detail if event.detail else ''}", highlight=False)
