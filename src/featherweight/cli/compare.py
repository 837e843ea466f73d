"""`fw compare`: many recipes on one model, one table and one page of quality against real bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import note, print_json


def run(
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the models, table and page; the same command goes on.")
    ],
    recipes: Annotated[
        str, typer.Option(help="Shipped recipes or YAML files, comma separated; every shipped one if not given.")
    ] = "",
    sweep: Annotated[bool, typer.Option("--sweep", help="Every method from 2 to 8 bits, and --recipes if given.")] = False,
    data: Annotated[str, typer.Option(help="Text to measure on, see `fw eval --data`.")] = "heldout",
    windows: Annotated[int | None, typer.Option(help="Windows at most; all if not given.", min=1)] = None,
    eval_length: Annotated[int | None, typer.Option(help="Tokens of a window that is measured.", min=2)] = None,
    task: Annotated[str | None, typer.Option(help="Also accuracy on questions, see `fw eval --task`.")] = None,
    questions: Annotated[int | None, typer.Option(help="Questions at most; all if not given.", min=1)] = None,
    speed: Annotated[bool, typer.Option(help="Time decoding, too.")] = True,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Compress MODEL by each recipe, measure all in one way, and mark what nothing else beats."""
    from featherweight.reports.compare import comparison_table
    from featherweight.reports.tables import wide_console
    from featherweight.search.compare import CELLS, PAGE, TABLE, compare
    from featherweight.search.points import sweep_recipes
    from featherweight.search.trial import Questionnaire

    tracking = options.tracking(track, track_folder, offline=offline)
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    source = options.find_model(model, offline=offline, yes=yes)
    named = [name.strip() for name in recipes.split(",") if name.strip()]
    with tracking.run("compare", source, {"recipes": named, "sweep": sweep, "changes": changes}) as tracked:
        entries, refused = compare(
            source,
            [*(sweep_recipes() if sweep else []), *named],
            output,
            asked=Questionnaire(data, eval_length, windows, task, questions, speed, dtype),
            changes=changes,
            device=device,
            offline=offline,
            report=note,
        )
        for entry in entries:
            sizes = {"bits": entry.bits, "model_bits": entry.model_bits, "file_bytes": entry.file_bytes}
            tracked.totals({f"{entry.name}/{name}": value for name, value in sizes.items()})
            tracked.measured(entry.name, entry.measurements.values())
        tracked.attach(output / TABLE, output / CELLS)
    if json:
        print_json({"models": [entry.as_dict() for entry in entries], "left_out": refused, "page": str(output / PAGE)})
        return
    console = wide_console()
    console.print(comparison_table(entries))
    console.print(
        f"* no other model here is smaller and no worse; ± is one standard error\n{output / PAGE}, {output / TABLE}",
        highlight=False,
    )
