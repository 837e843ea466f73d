"""`fw compress`: run the plan; the same command after a crash goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json, progress_bar


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
    device: options.Device = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Compress MODEL by RECIPE into OUTPUT, reload it and prove that it repeats its logits."""
    from featherweight import api
    from featherweight.reports.tables import print_result

    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    source = options.find_model(model, offline=offline, yes=yes)
    with progress_bar(quiet=json) as report:
        plan = api.plan(source, recipe, changes=changes, offline=offline)
        result = api.compress(plan, output, device=device, offline=offline, report=report)
    if json:
        print_json(result.as_dict())
    else:
        print_result(result)
