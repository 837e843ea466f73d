"""`fw search`: how far a recipe can go before something that must hold no longer does."""

from __future__ import annotations

from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import note, print_json

if TYPE_CHECKING:
    from featherweight.search.outcome import Found, Trial


def run(
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the best model and the log; the same command goes on.")
    ],
    subject_to: Annotated[
        list[str],
        typer.Option(help='What must hold: "accuracy(continuation) >= 0.5", "bytes <= 120MB", ...; may be repeated.'),
    ],
    maximize: Annotated[
        Literal["sparsity", "tokens-per-second", "smallness"], typer.Option(help="What to have as much of as possible.")
    ],
    recipe: options.RecipeName = "sparsegpt-50",
    knob: Annotated[
        str | None, typer.Option(help="The setting to turn, steps.0.ratio; chosen by the goal if not given.")
    ] = None,
    span: Annotated[str | None, typer.Option("--range", help="MILD:HARSH ends of the knob, 0:0.9 or 8:2.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="How exactly to find the setting; 0.01 if not given.")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of a text at most; all if not given.", min=1)] = None,
    eval_length: Annotated[int | None, typer.Option(help="Tokens of a window that is measured.", min=2)] = None,
    questions: Annotated[int | None, typer.Option(help="Questions of a task at most; all if not given.", min=1)] = None,
    letters: Annotated[bool, typer.Option("--letters", help="Ask tasks for a letter, as FastLlama did.")] = False,
    batch: Annotated[int, typer.Option(help="Sequences at once, for speed and memory.", min=1)] = 1,
    context: Annotated[int, typer.Option(help="Tokens before decoding, for speed and memory.", min=1)] = 128,
    keep_trials: Annotated[bool, typer.Option("--keep-trials", help="Keep every model that was tried.")] = False,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    device: options.Device = None,
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Turn one setting of RECIPE as far as every constraint holds on MODEL, and keep that model."""
    from featherweight.search.outcome import LOG, TABLE
    from featherweight.search.search import search
    from featherweight.search.trials import Measuring

    tracking = options.tracking(track, track_folder, offline=offline)
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    how = Measuring(windows, eval_length, questions, letters, batch, context, device, offline)
    source = options.find_model(model, offline=offline, yes=yes)
    asked = {"recipe": recipe, "changes": changes, "maximize": maximize, "subject_to": subject_to, "measuring": asdict(how)}
    with tracking.run("search", source, {"search": asked}) as tracked:
        steps = count()
        found = search(
            source, recipe, maximize, subject_to, output, knob=knob, span=span, tolerance=tolerance, changes=changes, how=how,
            keep_trials=keep_trials, report=note, tried=lambda trial: tracked.point("trial", next(steps), trial.numbers()),
        )  # fmt: skip
        assert found.best is not None
        told = found.as_dict()
        tracked.configure({"knob": told["knob"]})
        tracked.totals({f"best/{name}": value for name, value in found.best.numbers().items()})
        tracked.totals({f"total/{name}": told[name] for name in ("made_now", "measured_now", "seconds")})
        tracked.attach(output / LOG, output / TABLE)
    if json:
        print_json(found.as_dict())
    else:
        _print(found)


def _print(found: Found) -> None:
    from rich.table import Table

    from featherweight.reports.tables import wide_console
    from featherweight.search.outcome import LOG, TABLE

    assert found.best is not None
    table = Table(box=None, header_style="bold")
    labels = [constraint.label for constraint in found.constraints if constraint.metric.cost]
    for column in (found.knob.path, "bytes", "bits", "sparsity", "tokens/s", *labels, "holds", ""):
        table.add_column(column, justify="right")
    for trial in sorted(found.trials, key=lambda trial: trial.place):
        table.add_row(*_cells(trial, labels), "best" if trial == found.best else "")
    console = wide_console()
    console.print(table)
    bounds = ", ".join(constraint.text for constraint in found.constraints)
    console.print(f"the most {found.goal} with {bounds}: {found.knob.path}={found.best.value:g}", highlight=False)
    for line in found.notes:
        console.print(line, highlight=False)
    console.print(
        f"{len(found.trials)} trials, of which this call made {found.made} models and {found.measured} measurements, "
        f"{found.seconds:.0f} s\n{found.folder}, {found.folder.parent / LOG}, {found.folder.parent / TABLE}",
        highlight=False,
    )


def _cells(trial: Trial, labels: list[str]) -> list[str]:
    from featherweight.reports.tables import with_error

    def number(value: Any, form: str) -> str:
        return "" if value is None else format(value, form)

    seen = {each.label: each for each in trial.observed}
    measured = [
        with_error(seen[label].value, seen[label].stderr, ".5g") if label in seen else "not measured" for label in labels
    ]
    size = [f"{trial.bytes:,}", f"{trial.bits:.3f}", number(trial.sparsity, ".3f"), number(trial.tokens_per_second, ".1f")]
    return [f"{trial.value:g}", *size, *measured, "yes" if trial.holds else "no"]
