"""`fw layers`: what several methods and ranks make of single linears, iteration by iteration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json, progress_bar
from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from featherweight.engine.layers import Candidate

Several = list[str]


def run(
    model: options.Model,
    linears: Annotated[Several, typer.Option(help="Glob over full names of linears; comma separated or repeated.")],
    methods: Annotated[Several, typer.Option(help="Methods or recipes; comma separated or repeated.")],
    ranks: Annotated[
        Several | None, typer.Option(help="Ranks for those that have one, 16,64; their own setting if not given.")
    ] = None,
    shared_q: Annotated[
        Several | None,
        typer.Option(help="Bits, 2,4: try one rounded matrix for all chosen linears of one shape in a block, a product each."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for layers.json and layers.html.")] = None,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    device: options.Device = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Compress single linears of MODEL by several methods and ranks, and compare their errors; writes no model."""
    from featherweight.engine.layers import Sharing, try_layers

    changes = options.recipe_changes(calibration, samples, length, seed, None)
    wanted_ranks = _numbers("rank", options.split(ranks))
    candidates = _candidates(options.split(methods), wanted_ranks)
    bits = _numbers("number of bits", options.split(shared_q))
    sharing = [Sharing(each, rank) for each in bits for rank in (wanted_ranks or (None,))]
    source = options.find_model(model, offline=offline, yes=yes)
    with progress_bar(quiet=json) as report:
        attempts = try_layers(
            source,
            options.split(linears),
            candidates,
            changes=changes,
            device=device,
            offline=offline,
            sharing=sharing,
            report=report,
        )
    told = {"model": source.name, "calibration": changes, "attempts": [asdict(each) for each in attempts]}
    if output is not None:
        _write(output, told)
    if json:
        print_json(told)
    else:
        _print(told["attempts"])


def _numbers(what: str, given: Several) -> list[int]:
    wrong = [each for each in given if not each.isdigit() or int(each) < 1]
    if wrong:
        raise FeatherweightError(
            f"not a {what}", found=", ".join(wrong), expected="1 or more", fix="--ranks 16,64 --shared-q 2,4"
        )
    return [int(each) for each in given]


def _candidates(methods: Several, ranks: list[int]) -> list[Candidate]:
    from featherweight.engine.layers import Candidate

    candidates = []
    for method in methods:
        plain = Candidate.of(method)
        candidates += [Candidate.of(method, rank) for rank in ranks] if ranks and plain.has_rank else [plain]
    return candidates


def _write(folder: Path, told: dict[str, Any]) -> None:
    import json

    from featherweight.packed.files import write_text
    from featherweight.reports.layers import write_layers_page

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "layers.json", json.dumps(told, indent=1) + "\n")
    settings = ", ".join(f"{key} {value}" for key, value in told["calibration"].items()) or "the calibration of every recipe"
    conditions = f"Each linear for itself, behind dense blocks; {settings}."
    write_layers_page(folder / "layers.html", told["model"], conditions, told["attempts"])


def _print(attempts: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from featherweight.reports.layers import HEADINGS, layer_rows
    from featherweight.reports.tables import wide_console

    table = Table(box=None, header_style="bold")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for row in layer_rows(attempts):
        table.add_row(*row)
    wide_console().print(table)
