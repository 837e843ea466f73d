"""`fw shrink`: fewer MLP channels, fewer blocks, and an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json, progress_bar


def run(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    mlp: Annotated[float, typer.Option(help="Fraction of the channels of every MLP that goes.")] = 0.0,
    blocks: Annotated[int, typer.Option(help="Blocks that go: those that turn their inputs least.")] = 0,
    repair: Annotated[bool, typer.Option(help="Let the channels that stay make up for the others.")] = True,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    device: options.Device = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Make MODEL narrower or shallower; OUTPUT loads in transformers as it is, and every recipe works on it."""
    from featherweight import api
    from featherweight.reports.tables import print_shrunk

    asked = {"source": calibration, "samples": samples, "length": length, "seed": seed}
    chosen = {name: value for name, value in asked.items() if value is not None}
    source = options.find_model(model, offline=offline, yes=yes)
    with progress_bar(quiet=json) as report:
        result = api.shrink(
            source,
            output,
            mlp=mlp,
            blocks=blocks,
            repair=repair,
            calibration=chosen,
            device=device,
            offline=offline,
            report=report,
        )
    if json:
        print_json(result.as_dict())
    else:
        print_shrunk(result)
