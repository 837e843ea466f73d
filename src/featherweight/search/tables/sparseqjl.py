"""SparseQJL's table: SparseGPT and QJL, alone and together, measured with the exact cache and through the coded one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.engine.compress import pick_device
from featherweight.errors import FeatherweightError
from featherweight.evaluation.long_context import find_long_tasks
from featherweight.evaluation.protocol import Measurement
from featherweight.kv_cache.qjl import sketch_length
from featherweight.kv_cache.shapes import cache_shapes
from featherweight.models.source import ModelSource
from featherweight.planning.cache import CachePlan
from featherweight.planning.recipe import Recipe, load_recipe
from featherweight.reports.sheets import Column, Record, Sheet, write_sheets
from featherweight.search.cells import Cells
from featherweight.search.tables.frame import Line, Measure, Workshop, require_models

NAME, CELLS, RECIPE = "sparseqjl", "cells.json", "sparseqjl"

#: Head dimension that the seed's numbers of signs are for; its outliers' signs, which its code has and its flags do not.
HEAD_DIM, OUTLIER_SIGNS, INITIAL_OUTLIER_SIGNS = 128, 256, 128


@dataclass(frozen=True)
class CacheFlags:
    """The seed's flags of the cache, by their names there; numbers of signs are scaled where heads are not of 128.

    Attributes:
        key_quantization_bits, key_quantization_bits_initial_layers: signs of a key.
        initial_layers_count: layers that take the second number.
        outlier_count_general, outlier_count_initial_layers: channels of a group that are sketched apart.
        value_quantization_bits: of a value.
        group_size: tokens that share outliers, and channels that share a scale.
        buffer_size: newest tokens that stay exact.
        qjl_ratio: signs relative to 4 a channel, twice as many in the initial layers; in place of both numbers.
        seed: of the projections.
    """

    key_quantization_bits: int = 256
    key_quantization_bits_initial_layers: int = 512
    initial_layers_count: int = 15
    outlier_count_general: int = 8
    outlier_count_initial_layers: int = 8
    value_quantization_bits: int = 2
    group_size: int = 32
    buffer_size: int = 128
    qjl_ratio: float | None = None
    seed: int = 42

    def settings(self, head_dim: int) -> dict[str, Any]:
        """The section `kv_cache` of a recipe."""
        signs = self.key_quantization_bits, self.key_quantization_bits_initial_layers
        if self.qjl_ratio is not None:
            if not 0 < self.qjl_ratio <= 1:
                raise FeatherweightError("qjl_ratio is outside its range", found=self.qjl_ratio, expected="above 0, at most 1")
            signs = sketch_length(self.qjl_ratio, HEAD_DIM), sketch_length(min(1.0, 2 * self.qjl_ratio), HEAD_DIM)

        def keys(sketch: int, outliers: int, outlier_sketch: int) -> dict[str, Any]:
            length = _scaled(sketch, head_dim)
            return {
                "codec": "qjl", "sketch": length, "outliers": outliers,
                "outlier_sketch": min(length, _scaled(outlier_sketch, head_dim)), "group_size": self.group_size,
                "window": self.buffer_size,
            }  # fmt: skip

        bits, shared = self.value_quantization_bits, {"group_size": self.group_size, "window": self.buffer_size}
        told: dict[str, Any] = {
            "keys": keys(signs[0], self.outlier_count_general, OUTLIER_SIGNS),
            "values": {"codec": "integer", "bits": bits, "axis": "token", **shared},
            "seed": self.seed,
        }
        if self.initial_layers_count:
            first = keys(signs[1], self.outlier_count_initial_layers, INITIAL_OUTLIER_SIGNS)
            told |= {"first_layers": self.initial_layers_count, "first_keys": first}
        return told


def _scaled(signs: int, head_dim: int) -> int:
    return 32 * max(1, round(signs * head_dim / HEAD_DIM / 32))


@dataclass(frozen=True)
class Settings:
    """What the table is made with.

    Attributes:
        texts: to measure on, as in `evaluate`.
        tasks: `longbench:FOLDER` or `recall:NAME`.
        examples: of each task at most; the seed's n_data.
        windows, length: of each text; all windows, and the protocol's length, if None.
        dtype: of activations in measuring; None is float32 on a CPU and the checkpoint's elsewhere.
        context: tokens at which the cache's bytes are told.
        sparse: whether there are pruned rows.
        sparsity, blocksize: of SparseGPT.
        cache: the flags of QJL.
        changes: further dotted settings to replace in the recipe.
    """

    texts: tuple[str, ...] = ("wikitext2", "c4", "ptb")
    tasks: tuple[str, ...] = ()
    examples: int | None = None
    windows: int | None = None
    length: int | None = None
    dtype: str | None = None
    context: int = 32768
    sparse: bool = True
    sparsity: float = 0.5
    blocksize: int = 128
    cache: CacheFlags = field(default_factory=CacheFlags)
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check them."""
        if not self.texts and not self.tasks:
            raise FeatherweightError(
                "there is nothing to measure on", expected="one text or task or more", fix="--data heldout"
            )


def sparseqjl_table(
    sources: Sequence[ModelSource],
    output: Path,
    settings: Settings,
    *,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Sheet], list[Path]]:
    """One sheet per model and the files written; finished cells are kept, so that the same call goes on.

    Raises:
        FeatherweightError: unknown settings, texts or tasks, or a model that the recipe does not suit.
    """
    require_models(sources)
    api.check_texts(settings.texts, offline=offline)
    find_long_tasks(settings.tasks, limit=settings.examples)
    cells, place = Cells(output / CELLS), str(pick_device(device))
    shops = [Workshop(source, output, cells, place, offline, report) for source in sources]
    recipes = [_recipe(source, settings) for source in sources]
    for shop, recipe in zip(shops, recipes, strict=True):
        shop.plan(recipe)  # what does not suit a model is refused before any work
    sheets = [_sheet(index, *pair, settings) for index, pair in enumerate(zip(shops, recipes, strict=True))]
    return sheets, write_sheets(output, NAME, sheets)


def _recipe(source: ModelSource, settings: Settings) -> Recipe:
    """The shipped recipe with the table's settings; without its pruning where that is not wanted."""
    shipped = load_recipe(RECIPE).as_dict()
    step = {"method": "sparsegpt", "ratio": settings.sparsity, "block_size": settings.blocksize}
    cache = settings.cache.settings(cache_shapes(source.config())[0].key_dim)
    return load_recipe({**shipped, "steps": [step] if settings.sparse else [], "kv_cache": cache}).with_changes(
        settings.changes
    )


def _sheet(index: int, shop: Workshop, recipe: Recipe, settings: Settings) -> Sheet:
    """Both caches of both models; the rows of the exact cache and of the coded one differ in the last columns only."""
    plan = shop.plan(recipe).cache
    assert plan is not None
    dense, records = Line("dense", None), []
    lines = [("dense", "QJL", dense)] + ([("SparseGPT", "SparseQJL", Line("SparseQJL", recipe))] if settings.sparse else [])
    for exact_name, coded_name, line in lines:
        size = shop.size(line)
        exact, coded = _measured(shop, line, None, settings), _measured(shop, line, plan, settings)
        records.append({"row": exact_name, **size, "exact": exact, **_cache_size(None, plan, settings.context)})
        records.append({"row": coded_name, **size, "exact": exact, "coded": coded, **_cache_size(plan, plan, settings.context)})
    shown = [Column("", lambda record: str(record["row"]), words=True)]
    for text in settings.texts:
        shown += _text_columns(text)
    for task in records[0]["exact"].get("tasks", {}):
        shown += _task_columns(task)
    shown += [
        Column("bits a weight", lambda record: f"{record['bits_per_weight']:.3f}"),
        Column("bits a cached value", lambda record: f"{record['cache_bits']:.2f}"),
        Column(f"cache at {settings.context:,} tokens", lambda record: f"{record['cache_bytes'] / 2**20:,.1f} MiB"),
    ]
    name = NAME if index == 0 else f"{NAME}-{index + 1}"
    return Sheet(name, f"SparseQJL: {shop.source.name}", tuple(shown), tuple(records), _notes(records, settings))


def _notes(records: list[Record], settings: Settings) -> tuple[str, ...]:
    protocols = [Measurement.from_dict(records[1]["coded"][text]["perplexity"]).protocol.describe() for text in settings.texts]
    return (
        *(f"Perplexity: {protocol}." for protocol in protocols),
        "Exact cache: one forward, which never reads a code. KL: of the row's model, through its own cache, to the dense model's exact "
        "one; nats a token.",
        f"Bits: everything stored. Cache: one sequence of {settings.context:,} tokens in the checkpoint's dtype, exact newest tokens "
        "counted.",
    )


def _measured(shop: Workshop, line: Line, plan: CachePlan | None, settings: Settings) -> Record:
    """Every text and task, with the exact cache or through the planned one."""
    cache = "none" if plan is None else plan.settings
    asked = {
        "dtype": settings.dtype,
        "length": settings.length,
        "kv_cache": "none" if plan is None else plan.settings.as_dict(),
    }
    common: dict[str, Any] = {"kv_cache": cache, "device": shop.device, "dtype": settings.dtype, "offline": shop.offline}
    name = "exact cache" if plan is None else "through QJL"

    def read(folder: Path, text: str) -> dict[str, Any]:
        against = None if line.recipe is None and plan is None else shop.source.folder
        found = api.evaluate(folder, text, against=against, windows=settings.windows, length=settings.length, **common)
        return {measurement.name: measurement.as_dict() for measurement in found}

    def solve(folder: Path, task: str) -> dict[str, Any]:
        found = api.answer(folder, task, limit=settings.examples, **common)
        return {each.name.removesuffix("_exact"): each.as_dict() for each in found if plan is None or "_exact" not in each.name}

    measured: Record = {}
    for text in settings.texts:
        settled = {**asked, "windows": settings.windows, "text": text}
        measured[text] = shop.get(line, Measure(f"{text}, {name}", settled, partial(read, text=text)))
    tasks: Record = {}
    for task in settings.tasks:
        settled = {**asked, "examples": settings.examples, "task": task}
        tasks |= shop.get(line, Measure(f"{task}, {name}", settled, partial(solve, task=task)))
    return {**measured, "tasks": tasks} if tasks else measured


def _cache_size(coded: CachePlan | None, plan: CachePlan, context: int) -> Record:
    if coded is None:
        return {"cache_bits": 8.0 * plan.dtype.itemsize, "cache_bytes": plan.exact_token_bytes * context}
    bits = {"key_bits": plan.key_bits, "value_bits": plan.value_bits}
    return {**bits, "cache_bits": sum(bits.values()) / 2, "cache_bytes": plan.bytes_of(context)}


def _text_columns(text: str) -> list[Column]:
    return [
        Column(f"{_title(text)}, exact cache", lambda record: _value(record["exact"][text].get("perplexity"))),
        Column("through QJL", lambda record: _value(record.get("coded", {}).get(text, {}).get("perplexity"))),
        Column("KL", lambda record: _value(_own(record)[text].get("kl"), ".4f")),
    ]


def _title(text: str) -> str:
    """A file by its name, `ptb:FILE` as `ptb`; the notes under the table say the rest."""
    name, colon, _ = text.partition(":")
    return name if colon and Path(name).name == name else Path(text).name


def _own(record: Record) -> Record:
    """What the row's model scores with the row's cache."""
    return dict(record["coded"] if "coded" in record else record["exact"])


def _task_columns(task: str) -> list[Column]:
    return [
        Column(f"{task}, exact cache", lambda record: _value(record["exact"]["tasks"].get(task), ".3f")),
        Column("through QJL", lambda record: _value(record.get("coded", {}).get("tasks", {}).get(task), ".3f")),
    ]


def _value(measured: Record | None, form: str = ".2f") -> str:
    if measured is None:
        return ""
    found = Measurement.from_dict(measured)
    return format(found.value, form) + (f" ± {found.stderr:{form}}" if found.stderr else "")
