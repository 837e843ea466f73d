"""`fw plan`: what would happen, with exact bytes, without reading a weight; with `--fit` what would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json
from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featherweight.planning.fit import Need
    from featherweight.planning.plan import Plan


def run(
    model: options.Model,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Shipped recipe or YAML file, gptq-4bit if not given; with --fit several, or all."),
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Memory to fit into, 8GiB or 24GB: list recipes instead; needs no more than config.json.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="With --fit: tokens of a sequence, 4096 or 32k.")] = None,
    batch: Annotated[int | None, typer.Option(help="With --fit: sequences at once.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="With --fit: cuda (if not given) or cpu.")] = None,
    for_format: Annotated[
        str | None, typer.Option("--for", help="Stop if `fw export --format` could not write this: vllm, gptq, gguf, ...")
    ] = None,
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
    changes = options.recipe_changes(calibration, samples, length, seed, settings)
    if fit is not None:
        _fit(model, recipe, fit, context, batch, device or "cuda", changes, offline, json)
        return
    given = {"--context": context, "--batch": batch, "--device": device}
    if any(value is not None for value in given.values()):
        names = ", ".join(name for name, value in given.items() if value is not None)
        raise FeatherweightError("this goes with --fit", found=names, expected="--fit MEMORY", fix=f"--fit 8GiB {names} ...")

    from featherweight import api
    from featherweight.models.source import config_alone
    from featherweight.planning.estimate import estimate
    from featherweight.reports.tables import print_plan

    source = config_alone(model) or options.find_model(model, offline=offline, yes=yes)
    made = api.plan(source, recipe or "gptq-4bit", changes=changes, offline=offline)
    if for_format is not None:
        _check_format(made, for_format)
    cost = estimate(made)
    if json:
        print_json({**made.as_dict(), "estimate": vars(cost)})
    else:
        print_plan(made, cost)


def _check_format(made: Plan, name: str) -> None:
    from featherweight.export.write import find_format, reasons, refuse

    target = find_format(name)
    target.check_model(made.source.config())
    packed = [(row.module, row.description, row.kind) for row in made.rows if row.description is not None]
    refuse(target, reasons(target, packed, made.structure.experts))


def _fit(
    model: str, recipe: str | None, memory: str, context: str | None, batch: int | None, device: str,
    changes: dict, offline: bool, json: bool,
) -> None:  # fmt: skip
    from featherweight.models.source import resolve_config
    from featherweight.planning.fit import fit, require_any
    from featherweight.planning.quantities import parse_bytes, parse_tokens

    if device not in ("cpu", "cuda"):
        raise FeatherweightError("no such device", found=device, expected="cuda or cpu", fix="--device cuda")
    limit = parse_bytes(memory)
    source = resolve_config(model, offline=offline)
    tokens = min(4096, source.max_length()) if context is None else parse_tokens(context)
    names = [name.strip() for name in (recipe or "").split(",") if name.strip()]
    needs, refused = fit(source, names, limit, context=tokens, batch=batch or 1, device=device, changes=changes)
    require_any(needs, tokens, batch or 1)
    if json:
        shape = {"limit": limit, "context": tokens, "batch": batch or 1, "device": device}
        print_json({"model": model, **shape, "recipes": [need.as_dict() for need in needs], "left_out": refused})
        return
    _print(model, needs, refused, f"{batch or 1} x {tokens} tokens in {memory}")


def _print(model: str, needs: Sequence[Need], refused: dict[str, str], wanted: str) -> None:
    from rich.table import Table

    from featherweight.reports.tables import human_bytes, wide_console

    table = Table(box=None, header_style="bold")
    for column in (
        "recipe",
        "bits",
        "made-up error",
        "weights",
        "cache",
        "work",
        "process",
        "total",
        "left",
        "largest context",
        "fits",
    ):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for need in needs:
        sizes = [human_bytes(size) for size in (need.weights, need.cache, need.work, need.process, need.total)]
        sizes[0] = ("≤ " if need.at_most else "") + sizes[0]
        left = human_bytes(need.limit - need.total)
        longest = f"{need.largest_context:,}" if need.largest_context else "below 64"
        verdict = "yes" if need.fits else "no"
        table.add_row(need.recipe, f"{need.bits:.2f}", f"{need.error:.1e}", *sizes, left, longest, verdict)
    console = wide_console()
    console.print(f"{model}, {wanted}", highlight=False)
    console.print(table)
    for name, reason in refused.items():
        console.print(f"{name} left out: {reason}", highlight=False)
    fitting = [need.recipe for need in needs if need.fits]
    console.print(
        "sorted by the error on a made-up layer: quality is not measured here\n"
        + (
            f"{fitting[0]} is the first that fits; measure: fw compare {model} --recipes {','.join(fitting[:3])} -o compared"
            if fitting[0] != "dense"
            else "the dense model fits as it is"
        ),
        highlight=False,
    )
