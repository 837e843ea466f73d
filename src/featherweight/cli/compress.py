"""`fw compress`: run the plan; the same command after a crash goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import counting_bar, print_json, progress_bar


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
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Compress MODEL by RECIPE into OUTPUT, reload it and prove that it repeats its logits."""
    from featherweight import api
    from featherweight.reports.tables import print_measurements, print_result

    texts = [text for several in evaluate or [] for text in several.split(",") if text]
    api.check_texts(texts, offline=offline)
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    source = options.find_model(model, offline=offline, yes=yes)
    with progress_bar(quiet=json) as report:
        plan = api.plan(source, recipe, changes=changes, offline=offline)
        result = api.compress(plan, output, device=device, offline=offline, report=report)
    if not json:
        print_result(result)
    scores = {}
    if texts:
        with counting_bar("windows", quiet=json) as progress:
            scores = api.score(
                result.folder, texts, against=source.folder, windows=windows, device=device, offline=offline, progress=progress
            )
    if json:
        measured = {text: [measurement.as_dict() for measurement in each] for text, each in scores.items()}
        print_json({**result.as_dict(), "evaluation": measured})
        return
    for text, measurements in scores.items():
        print_measurements(f"{result.folder} on {text}", measurements)
