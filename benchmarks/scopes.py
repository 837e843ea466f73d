"""Dropping the inputs of the head, of the decoder, or of all linears, unquantized: what each costs, by both scores.

    python benchmarks/scopes.py MODEL [--windows 8] [--length 512] [--questions 120] [--ratios 0.1 ...] -o FOLDER

Nothing is quantized, so that only the scope differs. Every trial is kept in FOLDER; the same command goes on. Last comes the reason:
how much of the energy of each linear's input lies in the hundredth of its inputs with the smallest L1 norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch

import featherweight as fw
from featherweight import api
from featherweight.data.corpora import load_corpus
from featherweight.data.windows import evaluation_windows
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource, resolve_model
from featherweight.planning.recipe import Recipe
from featherweight.reports.sheets import Column, Sheet, markdown
from featherweight.search.cells import Cells
from featherweight.search.tables.frame import Line, Measure, Workshop

SCOPES, SCORES, RATIOS = ("head", "decoder", "all"), ("l1", "activation"), (0.01, 0.05, 0.1, 0.25, 0.35, 0.5)


def line(scope: str, score: str, ratio: float) -> Line:
    """A model of which only inputs were dropped."""
    step = {"method": "structured", "ratio": ratio, "score": score, "scope": scope}
    calibration = {"samples": 16, "length": 128, "batch_size": 8}
    recipe = Recipe.model_validate({"name": "scopes", "steps": [step], "calibration": calibration})
    return Line(f"{scope} {score} {ratio:g}", recipe)


def measure(source: Path, windows: int, length: int, questions: int) -> Measure:
    """Perplexity, KL against the dense model, and accuracy on the shipped questions."""

    def run(folder: Path) -> dict[str, Any]:
        found = api.evaluate(folder, against=source, windows=windows, length=length)
        found += api.answer(folder, limit=questions) if questions else []
        return {each.name: each.as_dict() for each in found}

    return Measure("scopes", {"windows": windows, "length": length, "questions": questions}, run)


def quiet_energy(source: ModelSource) -> dict[str, float]:
    """Share of `Σ E[x²]` in the 1 % of inputs of smallest L1 norm, by linear, on 256 held-out tokens."""
    model, shares = fw.load(source.folder, dtype=torch.float32), {}

    def watch(name: str) -> Any:
        def look(module: torch.nn.Linear, given: tuple[torch.Tensor, ...]) -> None:
            energy = given[0].flatten(0, -2).pow(2).mean(0)
            order = module.weight.abs().sum(0).argsort()
            shares[name] = float(energy[order[: len(order) // 100]].sum() / energy.sum())

        return look

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features >= 100:
            module.register_forward_pre_hook(watch(name))
    text = load_corpus("heldout", split="evaluation", offline=True)
    tokens = evaluation_windows(text, source.tokenizer(), length=256, windows=1).tokens
    with torch.no_grad():
        model(tokens)
    return shares


def shown(record: dict[str, Any], name: str, form: str) -> str:
    """A measurement with its standard error, if it was taken."""
    if name not in record:
        return ""
    found = Measurement.from_dict(record[name])
    return f"{found.value:{form}}" + ("" if found.stderr is None else f" ± {found.stderr:{form}}")


def main() -> None:
    """Run and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    source = resolve_model(asked.model)
    shop = Workshop(source, asked.output, Cells(asked.output / "cells.json"), report=lambda text: print(text, flush=True))
    taken = measure(source.folder, asked.windows, asked.length, asked.questions)
    records = [
        {"scope": scope, "score": score, "ratio": ratio, **shop.get(line(scope, score, ratio), taken, keep=False)}
        for ratio in asked.ratios
        for scope in SCOPES
        for score in SCORES
    ]
    columns = (
        Column("ratio", lambda record: f"{record['ratio']:g}", words=True),
        Column("scope", lambda record: record["scope"], words=True),
        Column("score", lambda record: record["score"], words=True),
        Column("perplexity", lambda record: shown(record, "perplexity", ".2f")),
        Column("KL", lambda record: shown(record, "kl", ".4f")),
        Column("same top token", lambda record: shown(record, "top1_agreement", ".1%")),
        Column("accuracy", lambda record: shown(record, "accuracy", ".1%")),
    )
    dense = fw.evaluate(source.folder, windows=asked.windows, length=asked.length)[0]
    print(markdown(Sheet("scopes", f"{source.name}, dense perplexity {dense.value:.2f}", columns, tuple(records))))
    groups: dict[str, list[float]] = {}
    for name, share in quiet_energy(source).items():
        groups.setdefault(name.rpartition(".")[2], []).append(share)
    for kind, shares in groups.items():
        print(f"energy in the 1 % of inputs of smallest L1: {kind}, median {median(shares):.3f}, most {max(shares):.3f}")


if __name__ == "__main__":
    main()
