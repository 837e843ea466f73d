"""`fw table`: the published tables of projects, made again on any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import note, print_json
from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from featherweight.reports.sheets import Sheet

app = typer.Typer(help="Make a project's published tables again, on any models.", no_args_is_help=True)

Models = Annotated[list[str], typer.Argument(help="Folders, hub names or packaged models, side by side.", show_default=False)]
TableOutput = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for models, cells and tables; the same command goes on.")
]


@app.command("fastllama")
def fastllama(
    models: Models,
    output: TableOutput,
    task: Annotated[
        str, typer.Option(help="Questions: continuation (shipped), race-high, race-middle, or a file, race-high:FILE.")
    ] = "continuation",
    scoring: Annotated[
        Literal["likelihood", "letters"], typer.Option(help="Likeliest choice, or ask for a letter as the seed did.")
    ] = "likelihood",
    questions: Annotated[int | None, typer.Option(help="At most; all, or 100 by letters, if not given.", min=1)] = None,
    prompts: Annotated[int, typer.Option(help="Of the speed protocol.", min=1)] = 20,
    context: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 128,
    bits: Annotated[str, typer.Option(help="Quantizations, comma separated.")] = "4,8",
    limits: Annotated[bool, typer.Option(help="The second table: how much pruning keeps the accuracy.")] = True,
    floor: Annotated[float, typer.Option(help="That accuracy.")] = 0.5,
    floor_on: Annotated[
        Literal["all", "answered"], typer.Option(help="Accuracy of all questions or of answered ones.")
    ] = "all",
    highest: Annotated[float, typer.Option(help="Largest ratio that is tried.")] = 0.9,
    tolerance: Annotated[float, typer.Option(help="Of the ratio.")] = 0.01,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """FastLlama: dense, 4 and 8 bits, each also with a pruned head; and the largest ratio that keeps accuracy."""
    from featherweight.search.tables.fastllama import Settings, fastllama_table

    chosen = Settings(
        task=task,
        scoring=scoring,
        questions=questions,
        prompts=prompts,
        context=context,
        dtype=dtype,
        bits=_numbers(bits),
        floor=floor if limits else None,
        floor_on=floor_on,
        highest=highest,
        tolerance=tolerance,
        changes=options.recipe_changes(calibration, samples, length, seed, settings),
    )
    sources = [options.find_model(model, offline=offline, yes=yes) for model in models]
    _show("fastllama", *fastllama_table(sources, output, chosen, device=device, offline=offline, report=note), json)


@app.command("pqp")
def pqp(
    models: Models,
    output: TableOutput,
    data: Annotated[str, typer.Option(help="Texts, comma separated, see `fw eval --data`.")] = "wikitext2",
    windows: Annotated[int | None, typer.Option(help="Windows of each text at most.", min=1)] = None,
    eval_length: Annotated[int | None, typer.Option(help="Tokens of a window that is measured.", min=2)] = None,
    ratio: Annotated[float | None, typer.Option(help="Fraction of the weights dropped.  [0.5, or what N:M says]")] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M, such as 2:4, for the rows that can have it.")] = None,
    bits: Annotated[int, typer.Option(help="Of what is kept.")] = 4,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale; -1 for whole rows, as published.")] = -1,
    ours: Annotated[bool, typer.Option(help="Rows that the published table does not have.")] = True,
    rows: Annotated[str, typer.Option(help="Rows by part of their names, comma separated; all if not given.")] = "",
    task: Annotated[
        list[str] | None, typer.Option("--task", "--tasks", help="Questions besides, see `fw eval --task`; a set such as pqp.")
    ] = None,
    questions: Annotated[int | None, typer.Option(help="Of each task at most.", min=1)] = None,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = None,
    settings: options.Changes = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """PQP: SparseGPT, Wanda, RIA, BESA, BaWA-style, JSQ and PQP, pruned and rounded on one calibration."""
    from featherweight.search.tables.pqp import Settings, pqp_table

    chosen = Settings(
        texts=_words(data),
        windows=windows,
        length=eval_length,
        dtype=dtype,
        ratio=ratio,
        pattern=pattern,
        bits=bits,
        group_size=None if group_size == -1 else group_size,
        ours=ours,
        rows=_words(rows),
        tasks=tuple(options.split(task)),
        questions=questions,
        changes=options.recipe_changes(calibration, samples, length, seed, settings),
    )
    sources = [options.find_model(model, offline=offline, yes=yes) for model in models]
    _show("pqp", *pqp_table(sources, output, chosen, device=device, offline=offline, report=note), json)


@app.command("sparseqjl")
def sparseqjl(
    models: Models,
    output: TableOutput,
    data: Annotated[str, typer.Option(help="Texts, comma separated, see `fw eval --data`.")] = "wikitext2,c4,ptb",
    task: Annotated[str, typer.Option(help="longbench:FOLDER, recall:passkey, ..., comma separated.")] = "",
    n_data: Annotated[int | None, typer.Option(help="Examples of each task at most.", min=1)] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of each text at most.", min=1)] = None,
    eval_length: Annotated[int | None, typer.Option(help="Tokens of a window that is measured.", min=2)] = None,
    context: Annotated[int, typer.Option(help="Tokens at which the bytes of the cache are told.", min=1)] = 32768,
    key_quantization_bits: Annotated[
        int, typer.Option(help="Signs of a key, for heads of 128; other heads in proportion.", min=1)
    ] = 256,
    key_quantization_bits_initial_layers: Annotated[int, typer.Option(help="The same in the initial layers.", min=1)] = 512,
    initial_layers_count: Annotated[int, typer.Option(help="How many layers are initial.", min=0)] = 15,
    outlier_count_general: Annotated[int, typer.Option(help="Outlier channels of a group of keys.", min=0)] = 8,
    outlier_count_initial_layers: Annotated[int, typer.Option(help="The same in the initial layers.", min=0)] = 8,
    value_quantization_bits: Annotated[int, typer.Option(help="Of a value.")] = 2,
    group_size: Annotated[int, typer.Option(help="Tokens that share outliers; channels that share a scale.", min=1)] = 32,
    buffer_size: Annotated[int, typer.Option(help="Newest tokens that stay exact.", min=1)] = 128,
    qjl_ratio: Annotated[
        float | None, typer.Option(help="Signs relative to 4 a channel, in place of both numbers: 0.5 is 256 for heads of 128.")
    ] = None,
    sparse: Annotated[bool, typer.Option(help="Rows of the pruned model.")] = True,
    sparsity: Annotated[float, typer.Option(help="Fraction of the weights dropped.")] = 0.5,
    blocksize: Annotated[int, typer.Option(help="Columns that SparseGPT selects together.", min=1)] = 128,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = 42,
    settings: options.Changes = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """SparseQJL: dense, SparseGPT, QJL and both, with the exact cache and through the coded one."""
    from featherweight.search.tables.sparseqjl import CacheFlags, Settings, sparseqjl_table

    cache = CacheFlags(
        key_quantization_bits=key_quantization_bits,
        key_quantization_bits_initial_layers=key_quantization_bits_initial_layers,
        initial_layers_count=initial_layers_count,
        outlier_count_general=outlier_count_general,
        outlier_count_initial_layers=outlier_count_initial_layers,
        value_quantization_bits=value_quantization_bits,
        group_size=group_size,
        buffer_size=buffer_size,
        qjl_ratio=qjl_ratio,
        seed=seed or 0,
    )
    chosen = Settings(
        texts=_words(data),
        tasks=_words(task),
        examples=n_data,
        windows=windows,
        length=eval_length,
        dtype=dtype,
        context=context,
        sparse=sparse,
        sparsity=sparsity,
        blocksize=blocksize,
        cache=cache,
        changes=options.recipe_changes(calibration, samples, length, seed, settings),
    )
    sources = [options.find_model(model, offline=offline, yes=yes) for model in models]
    _show("sparseqjl", *sparseqjl_table(sources, output, chosen, device=device, offline=offline, report=note), json)


def _show(name: str, sheets: list[Sheet], paths: list[Path], json: bool) -> None:
    from featherweight.reports.sheets import terminal_table
    from featherweight.reports.tables import wide_console

    if json:
        print_json({"table": name, "sheets": [sheet.as_dict() for sheet in sheets], "files": list(map(str, paths))})
        return
    console = wide_console()
    for sheet in sheets:
        console.print(terminal_table(sheet))
        console.print("\n".join(sheet.notes), highlight=False, end="\n\n")
    console.print(", ".join(map(str, paths)), highlight=False)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise FeatherweightError("--bits is a list of numbers", found=text, expected="4, 8 or 4,8", fix="--bits 4,8") from None
