"""lm-evaluation-harness through its Python API, on our models as they are loaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.data.choices import FORMS, Questions, is_own, load_questions
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, dtype_of
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.task_sets import METRIC, TASK_SETS
from featherweight.integrations.lm_eval_tasks import Harness, apart, load_tasks

_WAYS = {"multiple_choice": "likelihood", "generate_until": "generation", "loglikelihood_rolling": "rolling likelihood"}


def find_tasks(
    names: Sequence[str],
    *,
    letters: bool = False,
    fewshot: int | None = None,
    batch_size: int | None = None,
    include_path: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
) -> tuple[list[Questions], Harness | None]:
    """Our own questions and lm-eval's tasks behind names, read before any model is loaded.

    Ours are the shipped set, RACE by school, and files; every other name is lm-eval's (`race` too).

    Raises:
        FeatherweightError: what `load_questions` and `load_tasks` raise, or a setting for the other kind.
    """
    own = [name for name in names if is_own(name)]
    theirs = [name for name in names if name not in own]
    harness = {"fewshot": fewshot, "batch_size": batch_size, "include_path": include_path, "tasks_data": data}
    idle = [name for name, value in harness.items() if value is not None and not theirs]
    if idle or (letters and theirs):
        raise FeatherweightError(
            f"{idle[0].replace('_', '-')} is a setting of lm-eval's tasks" if idle else "letters are for questions of our own",
            found=", ".join(names),
            expected="a task such as arc_easy, or a set such as wanda" if idle else FORMS,
        )
    questions = [load_questions(name, offline=offline) for name in own]
    if not theirs:
        return questions, None
    return questions, load_tasks(theirs, fewshot=fewshot, include_path=include_path, data=data, offline=offline)


def run_tasks(
    model: Any,
    tokenizer: Any,
    harness: Harness,
    *,
    limit: int | None = None,
    batch_size: int = 1,
) -> tuple[list[Measurement], dict[str, Any]]:
    """`lm_eval.simple_evaluate` on a loaded model; packed weights run packed.

    Args:
        model, tokenizer: of a causal language model.
        harness: from `load_tasks`.
        limit: the first so many questions of each task.
        batch_size: requests at once.

    Returns:
        Every metric as `TASK/METRIC` with lm-eval's standard error, and for a named set the mean `SET/acc`; and lm-eval's own
        results, its samples among them.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with apart(harness.offline):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        results = lm_eval.simple_evaluate(
            wrapped, tasks=list(harness.tasks), num_fewshot=harness.fewshot, limit=limit, task_manager=harness.manager
        )
    assert results is not None  # None on other ranks than the first, of which there are none
    base = Protocol(
        "", "", "", context_of(model) or wrapped.max_length, 0, joining=None, bos="tokenizer", dtype=dtype_of(model),
        harness=f"lm-eval {lm_eval.__version__}", limit=limit,
    )  # fmt: skip
    measured = [each for name in results["results"] for each in _measurements(name, results, base)]
    return measured + [mean for name in harness.sets for mean in _mean(name, measured)], results


def _measurements(name: str, results: Mapping[str, Any], base: Protocol) -> Iterator[Measurement]:
    """The metrics of one task or group; a group's protocol is that of its tasks together."""
    leaves = _leaves(name, results)
    samples = [sample for leaf in leaves for sample in results["samples"][leaf]]
    ways = {str(results["configs"][leaf].get("output_type")) for leaf in leaves}
    protocol = replace(
        base,
        corpus=name,
        corpus_sha256=_digest(sample["doc_hash"] for sample in samples),
        windows=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        rule="; ".join(sorted(_WAYS.get(way, way) for way in ways)),
        task_version=str(results["versions"].get(name, "")),
        task_sha256=_digest(sample[part] for sample in samples for part in ("doc_hash", "prompt_hash", "target_hash")),
        fewshot=max(int(results["n-shot"].get(leaf, 0)) for leaf in leaves),
    )
    values = results["results"][name]
    for key, value in values.items():
        metric, comma, way = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{way}")
            label = f"{name}/{metric}" if way == "none" else f"{name}/{metric}/{way}"
            known = isinstance(error, float) and math.isfinite(error)
            yield Measurement(label, float(value), error if known else None, protocol)


def _mean(name: str, measured: Sequence[Measurement]) -> Iterator[Measurement]:
    """`SET/acc`: the mean over a set's tasks, with the standard error of a mean of independent numbers."""
    by_name = {each.name: each for each in measured}
    parts = [by_name[f"{task}/{METRIC}"] for task in TASK_SETS[name]]
    errors = [each.stderr for each in parts if each.stderr is not None]
    error = math.sqrt(sum(each**2 for each in errors)) / len(parts) if len(errors) == len(parts) else None
    protocol = replace(
        parts[0].protocol,
        corpus=name,
        corpus_sha256=_digest(each.protocol.corpus_sha256 for each in parts),
        windows=sum(each.protocol.windows for each in parts),
        task_version=", ".join(f"{each.protocol.corpus} {each.protocol.task_version}" for each in parts),
        task_sha256=_digest(each.protocol.task_sha256 for each in parts),
    )
    yield Measurement(f"{name}/{METRIC}", sum(each.value for each in parts) / len(parts), error, protocol)


def _leaves(name: str, results: Mapping[str, Any]) -> list[str]:
    children = results.get("group_subtasks", {}).get(name)
    return [leaf for child in children for leaf in _leaves(child, results)] if children else [name]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()
