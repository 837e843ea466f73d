"""`fw statistics`: one calibration for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import note, print_json, progress_bar


def run(
    model: options.Model,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(help="Which: hessian, sum_sq, abs_max, samples; comma separated.  [hessian,sum_sq,abs_max]"),
    ] = None,
    settings: options.Changes = None,
    folder: Annotated[Path | None, typer.Option(help="Where they are kept; the cache if not given.")] = None,
    device: options.Device = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Gather the statistics of MODEL's inputs once, behind its original blocks, for recipes with engine.inputs: dense."""
    from dataclasses import asdict

    from featherweight import api
    from featherweight.engine.launch import leads
    from featherweight.engine.statistics import USUAL, gather_statistics

    source = options.find_model(model, offline=offline, yes=yes)
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    plan = api.plan(source, {"steps": [{"method": "gptq"}], "engine": {"inputs": "dense"}}, changes=changes, offline=offline)
    wanted = frozenset(options.split(needs)) or USUAL
    with progress_bar(quiet=json or not leads()) as draw:
        kept = gather_statistics(plan, needs=wanted, device=device, offline=offline, statistics=folder, report=draw)
    if not leads():
        return
    if json:
        print_json({"model": model, "statistics": [asdict(entry) for entry in kept]})
        return
    for entry in kept:
        told = f"{entry.inputs} inputs, {entry.tokens} tokens, {entry.bytes / 1e6:.1f} MB"
        print(f"{entry.axis}  {told}  ({', '.join(name.rpartition('.')[2] for name in entry.linears)})")
    note(f"{sum(entry.bytes for entry in kept) / 1e6:.1f} MB kept; use them with --set engine.inputs=dense")
