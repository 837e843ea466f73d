"""What is trained on, what is held out, and what is answered before and after."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.data.corpora import load_corpus
from featherweight.data.tasks import HUB, Examples, load_examples
from featherweight.data.windows import calibration_windows, evaluation_windows
from featherweight.errors import FeatherweightError
from featherweight.finetune.examples import encode
from featherweight.finetune.settings import Settings
from featherweight.models.source import ModelSource

#: The text of `lm` and `distill` if none is named.
TEXT = "calibration"


@dataclass(frozen=True)
class Material:
    """Rows to train on.

    Attributes:
        train, held_out: windows `[n, length]`, or examples as `encode` makes them.
        description: for the ledger.
        sha256: of all of it.
        questions: of the validation split, which decides nothing; None for a text.
    """

    train: Tensor
    held_out: Tensor
    description: dict[str, Any]
    sha256: str
    questions: Tensor | None = None


def gather(
    source: ModelSource, settings: Settings, data: str | None, validation: str | None = None, *, offline: bool = False
) -> Material:
    """Rows for the settings' task.

    Args:
        source: whose tokens they are in.
        data: a text as `load_corpus` takes it, of its calibration split; or of a task what `load_examples` takes. None for the
            shipped text, or the hub.
        validation: of a task, the file of its validation split where `data` is a file.

    Raises:
        FeatherweightError: a text or a split too short, a validation split without a task, or none to be found.
    """
    if settings.has_examples:
        return _examples(source, settings, data or HUB, validation, offline)
    if validation is not None:
        raise FeatherweightError(
            "a text has no validation split",
            found=f"--validation {validation}",
            expected="none",
            fix="--task rte or winogrande",
        )
    return _windows(source, settings, data or TEXT, offline)


def _examples(source: ModelSource, settings: Settings, data: str, validation: str | None, offline: bool) -> Material:
    training = load_examples(settings.task, "train", data, offline=offline)
    checked = load_examples(settings.task, "validation", validation or _second(data), offline=offline)
    if training.sha256 == checked.sha256:
        raise FeatherweightError("both splits are the same questions", found=checked.name, expected="two splits")
    most = len(training.items) - settings.measured_on
    count = _count(settings, most, f"{len(training.items)} examples in {training.name}")
    order = torch.randperm(len(training.items), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    chosen = [training.items[index] for index in order[: count + settings.measured_on]]
    tokenizer = source.tokenizer()
    rows, cut = encode(chosen, tokenizer, settings.length)
    questions, more_cut = encode(checked.items, tokenizer, settings.length)
    return Material(
        rows[:count], rows[count:],
        {"name": training.name, "validation": checked.name, "questions": len(questions), "seed": settings.seed,
         "ways_cut_to_length": cut + more_cut},
        _digest(training, checked, rows), questions,
    )  # fmt: skip


def _second(data: str) -> str:
    """Where the validation split is if it is not said: the hub or the folder of the training split."""
    if data != HUB and not Path(data).is_dir():
        raise FeatherweightError(
            "no validation split is named", found=f"--data {data}", expected="a folder with both splits, or --validation FILE"
        )
    return data


def _digest(training: Examples, checked: Examples, rows: Tensor) -> str:
    digest = hashlib.sha256(f"{training.sha256} {checked.sha256}".encode())
    digest.update(rows.numpy().tobytes())
    return digest.hexdigest()


def _windows(source: ModelSource, settings: Settings, data: str, offline: bool) -> Material:
    """A text is cut into windows side by side, its last are held out; a published rule by documents draws its own."""
    corpus = load_corpus(data, split="calibration", offline=offline)
    tokenizer = range(source.config().get_text_config(decoder=True).vocab_size) if corpus.samples else source.tokenizer()
    if corpus.strict and corpus.rule == "documents":
        count = settings.samples or 128
        drawn = calibration_windows(
            corpus, tokenizer, samples=count + settings.measured_on, length=settings.length, seed=settings.seed
        )
        return Material(drawn.tokens[:count], drawn.tokens[count:], drawn.description, drawn.sha256)
    cut = evaluation_windows(replace(corpus, rule="joined", maximum_windows=None), tokenizer, length=settings.length)
    most = len(cut) - settings.measured_on
    count = _count(settings, most, f"{len(cut)} windows of {settings.length} tokens in {corpus.name}")
    order = torch.randperm(most, generator=torch.Generator().manual_seed(settings.seed))[:count].sort().values
    tokens = torch.cat([cut.tokens[order], cut.tokens[most:]])
    taken = replace(cut, tokens=tokens, description={**cut.description, "windows": len(tokens), "seed": settings.seed})
    return Material(tokens[:count], tokens[count:], taken.description, taken.sha256)


def _count(settings: Settings, most: int, found: str) -> int:
    """Rows to train on, if there are so many."""
    count = most if settings.samples is None else settings.samples
    if not 1 <= count <= most:
        raise FeatherweightError(
            f"the {'training split' if settings.has_examples else 'text'} is too short", found=found,
            expected=f"{max(count, 1)} to train on and {settings.measured_on} held out",
            fix="take more data, a shorter --length, or fewer --samples or --held-out",
        )  # fmt: skip
    return count
