"""What one rounded matrix for two linears would give (LPLR-Q's SharedQ), against one for each, at equal bytes.

    python benchmarks/shared_q.py MODEL [MODEL ...] --output benchmarks/shared-q

`W₁ ≈ Q + L₁ R₁`, `W₂ ≈ Q + L₂ R₂`: in turn `Q` becomes the rounded mean of what the products leave, and each product the best of its
rank for what `Q` leaves; no data. A shared `Q` may have twice the bits. Per pair of equal shapes, of one block and of neighbours:
`cosine` of the two weights; relative squared errors, mean of both, with `own` matrices of 2 bits, with a `shared` one of 4 bits, and
with a shared one that is not rounded at all (`unrounded`), which no number of bits can beat. Scales in groups of 64, products of rank
`in / 16` in float16. The table has means and the best pair of each kind.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import torch
from torch import Tensor

import featherweight as fw
from featherweight.methods.shared import share
from featherweight.solvers.low_rank import Metric, best_factors

SHARE = 16
COLUMNS = ("model", "kind", "pair", "cosine", "own", "shared", "unrounded")


def error(weights: list[Tensor], bits: int) -> float:
    """Mean relative error of `W_i ≈ Q + L_i R_i`, the best of all rounds."""
    rank, generator = max(1, weights[0].shape[1] // SHARE), torch.Generator().manual_seed(0)
    made = share(weights, bits, rank, lambda index, values: relative(weights[index], values), generator)
    return min(sum(errors) / len(errors) for errors in zip(*made.paths, strict=True))


def relative(weight: Tensor, values: Tensor) -> float:
    """Squared error over squared weight."""
    return float((weight - values).square().sum() / weight.square().sum())


def least(weights: list[Tensor]) -> float:
    """The same of the best `Q` that is not rounded: `L₁ R₁ − L₂ R₂` is the best of twice the rank for `W₁ − W₂`."""
    apart, rank = weights[0] - weights[1], 2 * max(1, weights[0].shape[1] // SHARE)
    if rank < min(apart.shape):
        found = best_factors(apart, Metric(), rank, torch.Generator().manual_seed(0))
        apart = apart - found.left.T @ found.right
    return sum(float(apart.square().sum() / 4 / weight.square().sum()) for weight in weights) / 2


def pairs(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Kind and names of the linears to be compared: neighbours in one block, and the same linear of the next block."""
    blocks: dict[str, dict[str, str]] = {}
    for name in names:
        block, _, leaf = name.removesuffix(".weight").partition(".self_attn.")
        if not leaf:
            block, _, leaf = name.removesuffix(".weight").partition(".mlp.")
        if leaf:
            blocks.setdefault(block, {})[leaf] = name
    for inside in blocks.values():
        for one, other in combinations(inside, 2):
            yield f"{one}, {other}", inside[one], inside[other]
    for before, after in pairwise(blocks.values()):
        for leaf in before.keys() & after.keys():
            yield f"{leaf}, next block", before[leaf], after[leaf]


def _block(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def measured(model: str, blocks: int) -> Iterator[dict[str, object]]:
    """One row for each pair of the first `blocks`."""
    plan = fw.plan(model, "rtn-4bit")
    source, weights = plan.source, plan.weights
    for kind, *names in pairs([name for name in weights.names() if _block(name) < blocks]):
        both = [weights.read(name).float() for name in names]
        if both[0].shape != both[1].shape:
            continue
        own = sum(error([weight], 2) for weight in both) / 2
        yield {
            "model": Path(source.name).name, "kind": kind, "pair": f"{names[0]}, {names[1]}",
            "cosine": float(torch.nn.functional.cosine_similarity(both[0].flatten(), both[1].flatten(), 0)),
            "own": own, "shared": error(both, 4), "unrounded": least(both),
        }  # fmt: skip


def summary(rows: list[dict[str, object]]) -> str:
    """Mean of each kind, and its best pair."""
    heads = "model", "pair", "pairs", "cosine, largest", "own 2 bits", "shared 4 bits", "its best pair", "unrounded, best pair"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model, kind in dict.fromkeys((row["model"], row["kind"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["kind"]) == (model, kind)]
        means = {name: sum(float(row[name]) for row in mine) / len(mine) for name in ("own", "shared")}
        best = {name: min(float(row[name]) for row in mine) for name in ("shared", "unrounded")}
        largest = max((float(row["cosine"]) for row in mine), key=abs)
        lines.append(
            f"| {model} | {kind} | {len(mine)} | {largest:.3f} | {means['own']:.3f} | {means['shared']:.3f} | {best['shared']:.3f} "
            f"| {best['unrounded']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--blocks", type=int, default=8, help="how many, from the first")
    parser.add_argument("--output", type=Path, help="folder for shared-q.csv and shared-q.md")
    options = parser.parse_args()
    rows = [row for model in options.models for row in measured(model, options.blocks)]
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "shared-q.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        (options.output / "shared-q.md").write_text(summary(rows))
    print(summary(rows))


if __name__ == "__main__":
    main()
