"""The public surface in Python: plan, compress, load, evaluate, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from featherweight.engine.compress import Result, pick_device
from featherweight.engine.compress import compress as run_plan
from featherweight.engine.importing import import_checkpoint
from featherweight.engine.progress import Event, silent
from featherweight.engine.push import push
from featherweight.engine.shrink import Shrunk
from featherweight.engine.shrink import shrink as run_shrink
from featherweight.engine.shrink_task import Cut, HeadUnit
from featherweight.engine.verify import verify
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.export.write import export
from featherweight.finetune.finetune import finetune
from featherweight.integrations.cache_choice import CacheChoice, choose_cache
from featherweight.integrations.load import load as load_folder
from featherweight.kv_cache import detach_cache
from featherweight.models.source import ModelSource, resolve_model
from featherweight.packed.linear import dense_cache
from featherweight.planning.plan import Plan, make_plan
from featherweight.planning.recipe import Calibration, Recipe, load_recipe
from featherweight.reports.card import write_card

#: What `score` measured, in an output folder.
EVALUATION = "evaluation.json"

__all__ = [
    "answer",
    "check_texts",
    "compress",
    "evaluate",
    "export",
    "finetune",
    "import_checkpoint",
    "load",
    "plan",
    "push",
    "score",
    "shrink",
    "verify",
]


def plan(
    model: str | Path | ModelSource,
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    changes: dict[str, Any] | None = None,
    offline: bool = False,
) -> Plan:
    """The table of what `recipe` would do to `model`, with exact output bytes; reads no weights.

    Args:
        model: folder, hub name, GGUF file, or a packaged model (`demo`, `smollm2-135m`).
        recipe: shipped name, YAML file, dictionary or `Recipe`.
        changes: dotted settings to replace, `{"calibration.samples": 32}`.

    Raises:
        FeatherweightError: unknown model, recipe or setting; a glob that matches nothing.
    """
    return make_plan(model, load_recipe(recipe).with_changes(changes or {}), offline=offline)


def compress(
    plan: Plan,
    output: str | Path,
    *,
    device: str | None = None,
    offline: bool = False,
    statistics: Path | None = None,
    donors: Sequence[Path] = (),
    report: Callable[[Event], None] = silent,
) -> Result:
    """Run `plan` into the folder `output`; the same call after a crash goes on where it stopped.

    Args:
        donors: other outputs, whose first weight files are taken over as far as this run would write the same.

    Raises:
        FeatherweightError: bad data, a folder in use, no space, or a saved model that does not repeat its logits.
    """
    result = run_plan(plan, output, device=device, offline=offline, statistics=statistics, donors=donors, report=report)
    if result.written:
        write_card(result.folder)
    return result


def load(model: str | Path, *, device: str | None = None, dtype: torch.dtype | str = "auto", stream: bool = False) -> Any:
    """A compressed output, or any dense model by name, in eval mode; with `stream` one block is in memory at a time, read anew for
    every forward.

    Raises:
        FeatherweightError: no such model, or an unfinished output.
    """
    folder = model if Path(model).is_dir() else resolve_model(model).folder
    return load_folder(folder, device=device, dtype=dtype, stream=stream)


def evaluate(
    model: str | Path,
    data: str = "heldout",
    *,
    against: str | Path | None = None,
    length: int | None = None,
    windows: int | None = None,
    variant: Literal["standard", "new"] = "standard",
    kv_cache: CacheChoice = None,
    stepwise: bool = False,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    stream: bool = False,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Perplexity of `model` on `data`; with `against`, also KL divergence and top-1 agreement with that model.

    Args:
        kv_cache: what the model reads keys and values from: its own settings if None, "none" for the exact ones, a preset, a
            YAML file, or settings. The reference reads exact ones.
        stepwise: feed the tokens one by one to the real cache instead of one forward that reads the same.
        dtype: of activations and dense weights; None is float32 on a CPU and the checkpoint's elsewhere.
        stream: as in `load`, for the model and the reference.

    Raises:
        FeatherweightError: unknown model or corpus, or a text shorter than one window.
    """
    from featherweight.evaluation.evaluate import evaluate as measure

    source = resolve_model(model, offline=offline)
    cache = choose_cache(source.folder, kv_cache)
    reference = resolve_model(against, offline=offline) if against else None
    dtype = _measuring_dtype(device, dtype)
    loaded = load(source.folder, device=device, dtype=dtype, stream=stream)
    with nullcontext() if stream else dense_cache(loaded):  # the same values, decoded once instead of once a window
        return measure(
            loaded, source.tokenizer(), data=data, length=length, windows=windows,
            against=load(reference.folder, device=device, dtype=dtype, stream=stream) if reference else None,
            variant=variant, cache=cache, stepwise=stepwise, offline=offline, progress=progress,
        )  # fmt: skip


def check_texts(texts: Sequence[str], *, offline: bool = False) -> None:
    """Find (or download) every text that `score` will read, before any work depends on it.

    Raises:
        FeatherweightError: a text that is unknown, malformed or not to be had.
    """
    from featherweight.data import load_corpus

    for text in texts:
        load_corpus(text, split="evaluation", offline=offline)


def score(
    output: str | Path,
    texts: Sequence[str],
    *,
    against: str | Path,
    windows: int | None = None,
    device: str | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Measurement]]:
    """`evaluate` a compressed output on several texts against the model it came from; kept in its `evaluation.json` and model card.

    Args:
        against: the dense model.
        windows: of each text at most.

    Raises:
        FeatherweightError: what `evaluate` raises.
    """
    scores = {
        text: evaluate(output, text, against=against, windows=windows, device=device, offline=offline, progress=progress)
        for text in texts
    }
    kept = {text: [measurement.as_dict() for measurement in measured] for text, measured in scores.items()}
    (Path(output) / EVALUATION).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_card(Path(output))
    return scores


def shrink(
    model: str | Path | ModelSource,
    output: str | Path,
    *,
    mlp: float = 0.0,
    heads: float = 0.0,
    blocks: int = 0,
    head_unit: HeadUnit = "auto",
    per_layer: bool = False,
    repair: bool = True,
    calibration: dict[str, Any] | None = None,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[Event], None] = silent,
) -> Shrunk:
    """Remove MLP channels, attention heads and whole blocks; `output` is an ordinary checkpoint, any recipe can go on with it.

    Args:
        mlp: fraction of the channels of every MLP.
        heads: fraction of the attention heads of every block.
        blocks: how many go.
        head_unit: whether heads go as whole KV groups ("group") or from inside every group ("query").
        per_layer: as many channels in all, shared unevenly over the blocks; `output` then loads only after
            `import featherweight`, and no recipe goes on with it.
        repair: whether what stays makes up for what goes, by least squares.
        calibration: settings as in a recipe's `calibration` section.

    Raises:
        FeatherweightError: nothing to do, nothing left, or a family that cannot be resized.
    """
    source = model if isinstance(model, ModelSource) else resolve_model(model, offline=offline)
    cut = Cut(mlp=mlp, heads=heads, blocks=blocks, head_unit=head_unit, per_layer=per_layer, repair=repair)
    settings, place = Calibration(**(calibration or {})), str(pick_device(device))
    return run_shrink(source, Path(output), cut, calibration=settings, device=place, offline=offline, report=report)


def answer(
    model: str | Path,
    tasks: str | Sequence[str] = "continuation",
    *,
    letters: bool = False,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int | None = None,
    include_path: Path | None = None,
    tasks_data: Path | None = None,
    kv_cache: CacheChoice = None,
    length: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Accuracy of `model` on questions: ours, tasks of lm-evaluation-harness, or of long contexts; see `find_tasks`, `find_long_tasks`.

    Args:
        tasks: "continuation", which ships with the package; what else `load_questions` reads; a task of lm-eval or a set of them.
        letters: of our own questions, ask for a letter instead of comparing likelihoods.
        limit: questions of each task at most; with `letters` 100 if not given.
        kv_cache: of the tasks of long contexts, which read through the cache; as in `evaluate`.
        length: of the same, tokens of an example.
        fewshot, batch_size, include_path, tasks_data: of lm-eval, see `load_tasks` and `run_tasks`.
        progress: called after each of our own questions; lm-eval draws its own.

    Raises:
        FeatherweightError: unknown model or task, wrong columns, lm-eval not installed, a setting that no task here takes, or a
            question that does not fit the context.
    """
    from featherweight.evaluation.choice import ASKED, ask_for_letters, choose_by_likelihood
    from featherweight.evaluation.long_context import find_long_tasks, is_long_context
    from featherweight.integrations.lm_eval import find_tasks, run_tasks

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    long = find_long_tasks([name for name in names if is_long_context(name)], limit=limit)
    short = [name for name in names if not is_long_context(name)]
    if short and (kv_cache, length) != (None, None):
        raise FeatherweightError(
            "a setting of recall: and longbench: tasks was given to others", found=", ".join(short),
            expected="kv_cache and length with tasks of long contexts only", fix="measure them in a call of their own",
        )  # fmt: skip
    own, harness = find_tasks(
        short,
        letters=letters, fewshot=fewshot, batch_size=batch_size, include_path=include_path, data=tasks_data, offline=offline,
    )  # fmt: skip
    source = resolve_model(model, offline=offline)
    cache = choose_cache(source.folder, kv_cache) if long else None
    loaded, tokenizer = load(source.folder, device=device, dtype=_measuring_dtype(device, dtype)), source.tokenizer()
    detach_cache(loaded)  # tasks of long contexts make their own; the others read exact keys and values
    measured: list[Measurement] = []
    with dense_cache(loaded):
        for task in long:
            measured += task(loaded, tokenizer, cache=cache, length=length, progress=progress)
        for questions in own:
            if letters:
                measured += ask_for_letters(loaded, tokenizer, questions, limit=limit or ASKED, progress=progress)
            else:
                measured += choose_by_likelihood(loaded, tokenizer, questions, limit=limit, progress=progress)
        if harness is not None:
            measured += run_tasks(loaded, tokenizer, harness, limit=limit, batch_size=batch_size or 1)[0]
    return measured


def _measuring_dtype(device: str | None, dtype: torch.dtype | str | None) -> torch.dtype | str:
    """The asked-for dtype; else float32 on a CPU and the checkpoint's elsewhere."""
    return dtype or (torch.float32 if device in (None, "cpu") else "auto")
