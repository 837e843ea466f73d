"""`fw eval`: perplexity, divergence and agreement, each number with its protocol."""

from __future__ import annotations

from pathlib import Path
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
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure MODEL on DATA."""
    from featherweight import api

    tracking = options.tracking(track, track_folder, offline=offline)
    source = options.find_model(model, offline=offline)
    asked = {"data": data if task is None else None, "task": task, "against": against, "windows": windows}
    with tracking.run("eval", source, {"eval": asked}) as tracked:
        with counting_bar("windows" if task is None else "questions", quiet=json) as progress:
            if task is not None:
                measurements = api.answer(
                    model, task, letters=letters, limit=windows, device=device, dtype=dtype, offline=offline, progress=progress
                )
            else:
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
        tracked.measured(task or data, measurements)
    _show(model, measurements, json)


def _show(model: str, measurements: list[Measurement], json: bool) -> None:
    from featherweight.reports.tables import print_measurements

    if json:
        print_json({"model": model, "measurements": [measurement.as_dict() for measurement in measurements]})
    else:
        print_measurements(model, measurements)
