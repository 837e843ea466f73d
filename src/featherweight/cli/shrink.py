"""`fw shrink`: fewer MLP channels, attention heads and blocks, and an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json, progress_bar


def run(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    mlp: Annotated[float, typer.Option(help="Fraction of the channels of every MLP that goes.")] = 0.0,
    heads: Annotated[float, typer.Option(help="Fraction of the attention heads of every block that goes.")] = 0.0,
    blocks: Annotated[int, typer.Option(help="Blocks that go: those that turn their inputs least.")] = 0,
    head_unit: Annotated[
        Literal["auto", "group", "query"],
        typer.Option(help="Heads go as whole KV groups, or from inside every group; auto: groups where that is possible."),
    ] = "auto",
    per_layer: Annotated[
        bool,
        typer.Option(
            "--per-layer",
            help="Share the channels that go unevenly over the blocks, by what they add. OUTPUT is then no ordinary checkpoint: "
            "it loads after `import featherweight` alone, and no recipe goes on from it.",
        ),
    ] = False,
    repair: Annotated[bool, typer.Option(help="Let what stays make up for what goes.")] = True,
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
            heads=heads,
            blocks=blocks,
            head_unit=head_unit,
            per_layer=per_layer,
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
