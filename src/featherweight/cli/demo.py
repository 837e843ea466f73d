"""`fw demo`: the embedded model, several recipes, one table; a minute or two on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json

if TYPE_CHECKING:
    from featherweight.engine.compress import Result
    from featherweight.reports.compare import Entry

RECIPES = ("rtn-8bit", "rtn-4bit", "gptq-4bit", "gptq-3bit-g128", "gptq-2bit")
PROMPT = "The captain looked at the sea, and"
_CHANGES = {"calibration.samples": 32, "calibration.length": 512, "calibration.batch_size": 8}
_NEXT = """Next:
  fw plan smollm2-135m --recipe gptq-4bit             what it would do to a real model, in exact bytes
  fw compress smollm2-135m --recipe gptq-4bit -o OUT  do it
  fw eval OUT --against smollm2-135m --data heldout   measure it
  fw recipes; fw methods                              everything there is"""


def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed models and the page.")] = Path(
        "featherweight-demo"
    ),
    windows: Annotated[int, typer.Option(help="Held-out windows of 1024 tokens to measure on.", min=1)] = 8,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Compress the embedded model by several recipes, measure, and show."""
    from featherweight.models.source import resolve_model
    from featherweight.reports.compare import comparison_table, mark_front
    from featherweight.reports.compare_page import write_page
    from featherweight.reports.tables import wide_console

    console = wide_console(stderr=json)
    source = resolve_model("demo")
    entries = [_dense(source.folder, windows)]
    for recipe in RECIPES:
        console.print(f"compressing by {recipe} ...", highlight=False)
        entries.append(_compressed(recipe, output / recipe, source.folder, windows))
    entries = mark_front(entries)
    page = output / "index.html"
    write_page(page, "The embedded model, made light", entries, prompt=PROMPT)
    if json:
        print_json({"models": [entry.as_dict() for entry in entries], "page": str(page)})
        return
    console.print(comparison_table(entries))
    console.print(f"\n“{PROMPT} ...”", highlight=False)
    for entry in entries:
        console.print(f"  {entry.name}: {entry.text!r}", highlight=False)
    console.print(f"\nThe plot of quality against bytes: {page}\n{_NEXT}", highlight=False, markup=False)


def _dense(folder: Path, windows: int) -> Entry:
    from featherweight import api
    from featherweight.reports.compare import Entry

    measured = api.evaluate(folder, "heldout", length=1024, windows=windows)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Entry("dense", 16.0, 16.0, size, {m.name: m for m in measured}, _continuation(folder))


def _compressed(recipe: str, folder: Path, dense: Path, windows: int) -> Entry:
    from featherweight import api
    from featherweight.reports.compare import Entry

    plan = api.plan("demo", recipe, changes=_CHANGES)
    result: Result = api.compress(plan, folder)
    measured = api.evaluate(folder, "heldout", against=dense, length=1024, windows=windows)
    kept = {m.name: m for m in measured if m.name in ("perplexity", "kl", "top1_agreement")}
    totals = result.totals
    methods = tuple(step.method for step in plan.recipe.steps)
    text = _continuation(folder)
    return Entry(recipe, totals.linear_bits, totals.model_bits, totals.file_bytes, kept, text, methods=methods)


def _continuation(folder: Path) -> str:
    import torch

    from featherweight import api
    from featherweight.evaluation.generate import generate_text
    from featherweight.models.source import resolve_model

    model = api.load(folder, dtype=torch.float32)
    return "".join(generate_text(model, resolve_model(folder).tokenizer(), PROMPT, max_new_tokens=24))
