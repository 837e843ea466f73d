"""`fw eval`: perplexity, divergence and agreement, each number with its protocol."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import counting_bar, print_json


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    data: Annotated[str, typer.Option(help="Text file, wikitext2, c4, ptb, wikitext2:FILE, or heldout.")] = "heldout",
    against: Annotated[str | None, typer.Option(help="Dense model to compare with: KL and top-1 agreement.")] = None,
    length: options.Length = None,
    windows: Annotated[int | None, typer.Option(help="Windows at most; all if not given.", min=1)] = None,
    variant: Annotated[
        Literal["standard", "new"], typer.Option(help="Protocol: standard as GPTQ, new as SparseGPT.")
    ] = "standard",
    device: options.Device = None,
    dtype: options.Dtype = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure MODEL on DATA."""
    from featherweight import api
    from featherweight.reports.tables import print_measurements

    with counting_bar("windows", quiet=json) as progress:
        measurements = api.evaluate(
            model,
            data,
            against=against,
            length=length,
            windows=windows,
            variant=variant,
            device=device,
            dtype=dtype,
            offline=offline,
            progress=progress,
        )
    if json:
        print_json({"model": model, "measurements": [measurement.as_dict() for measurement in measurements]})
    else:
        print_measurements(model, measurements)
