"""Many recipes on one model, measured in one way; every finished result is kept, so that a stopped comparison goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.data.choices import load_questions
from featherweight.engine.compress import pick_device
from featherweight.errors import FeatherweightError
from featherweight.models.source import ModelSource
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import Recipe, shipped_recipes
from featherweight.reports.compare import Entry, mark_front, require_one_protocol, write_csv
from featherweight.reports.compare_page import write_page
from featherweight.search.cells import Cells
from featherweight.search.trial import Questionnaire, Trial

CELLS, PAGE, TABLE = "cells.json", "index.html", "table.csv"


def compare(
    source: ModelSource,
    recipes: Sequence[str | Recipe],
    output: Path,
    *,
    asked: Questionnaire | None = None,
    changes: dict[str, Any] | None = None,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Entry], dict[str, str]]:
    """Compress a model by every recipe, measure each beside it, and write a page and a table.

    Args:
        source: the dense model.
        recipes: shipped names, YAML files or recipes; none for all that are shipped.
        output: folder: one compressed model per recipe, `cells.json`, `table.csv`, `index.html`.
        asked: what is measured.
        changes: dotted settings to replace in every recipe.
        device: for everything; None takes a GPU if there is one.
        report: called with a line per step.

    Returns:
        One entry per model, the dense one first; and the recipes that were left out, with the reason. A YAML file that does
        not suit the model is an error instead.

    Raises:
        FeatherweightError: no recipe suits the model; an unknown recipe, text or task; two different recipes of one name.
    """
    asked = asked or Questionnaire()
    api.check_texts([asked.data], offline=offline)
    if asked.task is not None:
        load_questions(asked.task, offline=offline)
    plans, refused = _plans(source, recipes or list(shipped_recipes()), changes or {}, offline)
    _check_folders(plans, output)
    for name, reason in refused.items():
        report(f"{name} left out: {reason}")
    trial = Trial(source, output, asked, Cells(output / CELLS), str(pick_device(device)), offline, report)

    entries = [trial.dense(next(iter(plans.values())))]
    for name, plan in plans.items():
        try:
            entries.append(trial.compressed(name, plan))
        except FeatherweightError as problem:
            if name in {Path(recipe).stem for recipe in _files(recipes)}:
                raise
            refused[name] = _reason(problem)
            report(f"{name} left out: {refused[name]}")
    require_one_protocol(entries)
    entries = mark_front(entries)
    notes = sorted({_calibration(plan) for plan in plans.values() if plan.needs_data}) + trial.notes
    write_page(output / PAGE, f"{source.name}: quality against size", entries, left_out=refused, notes=notes)
    write_csv(output / TABLE, entries)
    return entries, refused


def _plans(
    source: ModelSource, recipes: Sequence[str | Recipe], changes: dict[str, Any], offline: bool
) -> tuple[dict[str, Plan], dict[str, str]]:
    """A plan per recipe, by name, and why others cannot be planned on this model."""
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    files = _files(recipes)
    for recipe in recipes:
        name = recipe.name if isinstance(recipe, Recipe) else Path(recipe).stem if recipe in files else recipe
        try:
            plan = api.plan(source, recipe, changes=changes, offline=offline)
            _check_cache(plan)
        except FeatherweightError as problem:
            if recipe in files:
                raise
            refused[name] = _reason(problem)
            continue
        if name in plans and plans[name].hash != plan.hash:
            raise FeatherweightError(
                "two recipes have one name", found=name, expected="a name for each, since it names its folder",
                fix="rename one of the files",
            )  # fmt: skip
        plans.setdefault(name, plan)
    if not plans:
        raise FeatherweightError(
            "no recipe suits this model", found="; ".join(f"{name}: {reason}" for name, reason in refused.items())
        )
    return plans, refused


def _check_cache(plan: Plan) -> None:
    """Numbers through different caches share no column."""
    if plan.cache is not None:
        raise FeatherweightError(
            "it compresses the cache, and its numbers would share a column with those of exact caches", found="kv_cache",
            expected="recipes for weights", fix="compare its weights alone (--set kv_cache=null), or see fw table sparseqjl",
        )  # fmt: skip


def _check_folders(plans: dict[str, Plan], output: Path) -> None:
    """Models that were made here by other settings cannot be gone on with."""
    for name, plan in plans.items():
        path = output / name / "plan.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["hash"] != plan.hash:
            raise FeatherweightError(
                "this comparison was made with other settings", found=f"{path.parent}, by another recipe or calibration",
                expected="the settings of the command that made it", fix="choose another output, or delete that folder",
            )  # fmt: skip


def _files(recipes: Sequence[str | Recipe]) -> list[str]:
    """Recipes that the user wrote; what is wrong with one of them is for them to know."""
    return [recipe for recipe in recipes if isinstance(recipe, str) and recipe not in shipped_recipes()]


def _reason(problem: FeatherweightError) -> str:
    return f"{problem.error}, found {problem.found}" if problem.found else problem.error


def _calibration(plan: Plan) -> str:
    used = plan.recipe.calibration
    return f"calibration: {used.source}, {used.samples} windows of {used.length}, seed {used.seed}"
