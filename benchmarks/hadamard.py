"""Signed Hadamard transforms of rows against a copy of the same bytes.

python benchmarks/hadamard.py --output benchmarks/hadamard
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from card import Case, describe, measure, rotated, write_page
from lattice_weights import random_weight

from featherweight.kernels.cuda import hadamard
from featherweight.packed.lattice_device import to_device

#: Rows and their size: many rows, then one token and sixteen.
SHAPES = (
    (8192, 4096), (4096, 8192), (2048, 16384), (8192, 3072), (4096, 14336), (2048, 11008), (1024, 28672),
    (1, 4096), (1, 14336), (1, 28672), (1, 11008), (16, 4096),
)  # fmt: skip
TEXT = "`copy` is an elementwise kernel that reads and writes the same bf16 rows. Errors are against float64. [What binds](what-binds.md)."


def cases_of(rows: int, size: int) -> list[Case]:
    """A copy, and the transform."""
    packed = random_weight(16, size, 2, 0, "cuda")
    rotation, width = to_device(packed).input, 4 * rows * size
    inputs = rotated(lambda index: torch.randn(rows, size, device="cuda", dtype=torch.bfloat16), width)[:64]
    outputs = [torch.empty_like(each) for each in inputs]
    copies = [partial(torch.mul, each, 1, out=to) for each, to in zip(inputs, outputs, strict=True)]
    return [
        Case("copy", copies, width),
        Case("transform", [partial(hadamard.rotate, each, rotation, torch.bfloat16) for each in inputs], width, 0,
             packed.input.apply(inputs[0].double())),
    ]  # fmt: skip


def main() -> None:
    """All shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("hadamard"))
    options = parser.parse_args()
    card, rows = describe("cuda"), []
    for count, size in SHAPES:
        measured = measure(cases_of(count, size), card, {"rows": count, "size": size}, replays=8, cold=False)
        rows += [{name: value for name, value in row.items() if "floor" not in name} for row in measured]
        write_page(options.output, "hadamard", "Hadamard transforms", card, rows, TEXT)


if __name__ == "__main__":
    main()
