"""`fw plan`: what would happen, with exact bytes, without reading a weight."""

from __future__ import annotations

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    model: options.Model,
    recipe: options.RecipeName = "gptq-4bit",
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Print the table of what RECIPE does to MODEL: one row per linear, exact output bytes, predicted memory and time."""
    from featherweight import api
    from featherweight.planning.estimate import estimate
    from featherweight.reports.tables import print_plan

    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    made = api.plan(options.find_model(model, offline=offline, yes=yes), recipe, changes=changes, offline=offline)
    cost = estimate(made)
    if json:
        print_json({**made.as_dict(), "estimate": vars(cost)})
    else:
        print_plan(made, cost)
