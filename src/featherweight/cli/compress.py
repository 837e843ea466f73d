"""`fw compress`: run the plan; the same command after a crash goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli import options
from featherweight.cli.output import counting_bar, print_json, progress_bar

if TYPE_CHECKING:
    from featherweight.evaluation.protocol import Measurement
    from featherweight.planning.plan import Plan
    from featherweight.reports.tracking import Run


def run(
    model: options.Model,
    output: Annotated[
        str, typer.Option("--output", "-o", help="New or empty folder; an interrupted run's own folder goes on.")
    ],
    recipe: options.RecipeName = "gptq-4bit",
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(help="Then score it against MODEL on these texts, as in wikitext2,c4,ptb (see `fw eval --data`)."),
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of each text with --evaluate; all if not given.", min=1)] = None,
    device: options.Device = None,
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Compress MODEL by RECIPE into OUTPUT, reload it and prove that it repeats its logits."""
    from featherweight import api
    from featherweight.engine.launch import leads
    from featherweight.reports.tables import print_measurements, print_result

    first = leads()
    quiet = json or not first
    tracking = options.tracking(track if first else None, track_folder, offline=offline)
    texts = options.split(evaluate)
    api.check_texts(texts, offline=offline)
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    source = options.find_model(model, offline=offline, yes=yes)
    plan = api.plan(source, recipe, changes=changes, offline=offline)
    scores: dict[str, list[Measurement]] = {}
    with tracking.run("compress", source, {"recipe": plan.recipe.as_dict(), "plan": plan.hash}) as tracked:
        result = _compress(plan, output, device, offline, quiet, tracked)
        if not first:
            return
        if not json:
            print_result(result)
        if texts:
            with counting_bar("windows", quiet=json) as progress:
                scores = api.score(
                    result.folder, texts, against=source.folder, windows=windows, device=device, offline=offline, progress=progress
                )  # fmt: skip
            for text, measurements in scores.items():
                tracked.measured(text, measurements)
            tracked.attach(result.folder / api.EVALUATION)
    if json:
        measured = {text: [measurement.as_dict() for measurement in each] for text, each in scores.items()}
        print_json({**result.as_dict(), "evaluation": measured})
        return
    for text, measurements in scores.items():
        print_measurements(f"{result.folder} on {text}", measurements)


def _compress(plan: Plan, output: str, device: str | None, offline: bool, quiet: bool, tracked: Run) -> Any:
    """The run, drawn and tracked while it goes."""
    from featherweight import api
    from featherweight.reports.following import Follower

    with progress_bar(quiet=quiet) as draw:
        follower = Follower(plan, tracked, draw)
        result = api.compress(plan, output, device=device, offline=offline, report=follower)
    follower.finish(result)
    return result
