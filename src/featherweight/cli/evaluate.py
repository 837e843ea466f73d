"""`fw eval`: perplexity, divergence and agreement, each number with its protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import counting_bar, print_json

if TYPE_CHECKING:
    from featherweight.evaluation.protocol import Measurement


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    data: Annotated[str, typer.Option(help="Text file, wikitext2, c4, ptb, wikitext2:FILE, or heldout.")] = "heldout",
    task: Annotated[
        str | None,
        typer.Option(help="Questions instead of a text: continuation (shipped), or a .json/.jsonl file (RACE's too)."),
    ] = None,
    letters: Annotated[bool, typer.Option("--letters", help="With --task: ask for a letter, as FastLlama did.")] = False,
    against: Annotated[str | None, typer.Option(help="Dense model to compare with: KL and top-1 agreement.")] = None,
    length: options.Length = None,
    windows: Annotated[int | None, typer.Option(help="Windows, or questions, at most; all if not given.", min=1)] = None,
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

    if task is not None:
        with counting_bar("questions", quiet=json) as progress:
            measurements = api.answer(
                model, task, letters=letters, limit=windows, device=device, dtype=dtype, offline=offline, progress=progress
            )
        _show(model, measurements, json)
        return
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
    _show(model, measurements, json)


def _show(model: str, measurements: list[Measurement], json: bool) -> None:
    from featherweight.reports.tables import print_measurements

    if json:
        print_json({"model": model, "measurements": [measurement.as_dict() for measurement in measurements]})
    else:
        print_measurements(model, measurements)
