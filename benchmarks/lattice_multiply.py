"""Products with lattice weights between rotations against dense bf16, weights beyond every cache.

python benchmarks/lattice_multiply.py --output benchmarks/lattice-multiply
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from card import Case, measure, measure_card, rotated, write_page
from lattice_weights import random_weight
from sparse_multiply import read_card
from torch.nn.functional import linear

from featherweight.kernels.cuda import hadamard, lattice, lattice_blocks
from featherweight.packed.lattice_device import to_device

#: Outputs, inputs, bits, and numbers of tokens.
SHAPES = (
    (28672, 4096, 2, (1, 4, 8, 16)), (4096, 4096, 2, (1, 16)), (4096, 14336, 2, (1,)), (8192, 28672, 2, (1,)),
    (28672, 4096, 3, (1,)), (28672, 4096, 4, (1,)),
)  # fmt: skip
RANK = 128
TEXT = """`whole`: input rotated, codes and a term of rank 128 in 4-bit factors multiplied, output rotated back, as a packed linear
runs it; `no term` is the same without the term. `rotate input` makes what the product reads (and `R x` where blocks do not); `product`
multiplies alone, `rotating product` starts from the input as it comes; `rotate back` is what the product leaves of the output's
rotation. Errors are against float64 on the values of the stored weight.
[What binds](what-binds.md)."""


def cases_of(rows: int, inputs: int, bits: int, tokens: int) -> list[Case]:
    """Dense bf16, the whole product, and its parts."""
    size = rows * inputs * bits // 8 + RANK * (rows + inputs) * 17 // 32
    packed = random_weight(rows, inputs, bits, RANK, "cuda")
    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    exact, dense = packed.matmul(x.double()), packed.dequantize(torch.bfloat16)
    bare = packed.around(packed.inner.terms[0])
    dense_copies = rotated(lambda index: dense.clone(), 2 * dense.numel())
    copies = rotated(lambda index: to_device(random_weight(rows, inputs, bits, RANK, "cuda", index)), size)
    without = [replace(each, inner=replace(each.inner, left=None, ranks=None), right=None) for each in copies]
    ready = hadamard.rotate_for_product(x, copies[0].input, copies[0].right)
    product = lattice.multiply_rotated(ready, copies[0].inner, torch.float32)
    own = [partial(lattice.multiply_rotated, lattice.Unrotated(x, each.input), each.inner, torch.float32) for each in copies]
    flops = 2.0 * rows * inputs * tokens
    return [
        Case("bf16", [partial(linear, x, each) for each in dense_copies], 2 * dense.numel(), flops, exact),
        Case("whole", [partial(lattice.multiply, x, each) for each in copies], size, flops, exact),
        Case(
            "no term",
            [partial(lattice.multiply, x, each) for each in without],
            rows * inputs * bits // 8,
            flops,
            bare.matmul(x.double()),
        ),
        Case("rotate input", [partial(rotate_input, x, each) for each in copies]),
        *([Case("rotating product", own, size, flops)] if lattice.blocks_rotate(x, copies[0]) else []),
        Case("product", [partial(lattice.multiply_rotated, ready, each.inner, torch.float32) for each in copies], size, flops),
        Case("rotate back", [partial(rotate_back, product, each) for each in copies]),
    ]


def rotate_input(x: torch.Tensor, weight: lattice.DeviceRotated) -> torch.Tensor:
    """What the product reads."""
    return hadamard.rotate_for_product(x, weight.input, weight.right).steps


def rotate_back(product: torch.Tensor, weight: lattice.DeviceRotated) -> torch.Tensor:
    """What follows the product."""
    if weight.inner.blocks is not None:
        return lattice_blocks.turn(product[0], weight.inner.blocks, torch.bfloat16)
    assert weight.output is not None
    return hadamard.rotate(product, weight.output, torch.bfloat16, len(product))


def main() -> None:
    """All shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("lattice-multiply"))
    parser.add_argument("--card", type=Path, help="the card's own figures, from an earlier run")
    options = parser.parse_args()
    card, rows = measure_card("cuda") if options.card is None else read_card(options.card), []
    for outputs, inputs, bits, batches in SHAPES:
        for tokens in batches:
            about = {"outputs": outputs, "inputs": inputs, "bits": bits, "tokens": tokens}
            rows += measure(cases_of(outputs, inputs, bits, tokens), card, about, replays=10, cold=False)
            write_page(options.output, "lattice-multiply", "Products with lattice weights", card, rows, TEXT)


if __name__ == "__main__":
    main()
