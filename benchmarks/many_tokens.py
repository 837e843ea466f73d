"""Products of many tokens with weights in chunks: the chunks read once for every sixteen tokens, or made dense once, beside bf16.

    python benchmarks/many_tokens.py --output benchmarks/many-tokens        # a minute
    python benchmarks/many_tokens.py --shapes 4096x4096 --tokens 64 --output /tmp/many

Weights are random, half of them dropped where they are sparse, 1 % outliers. Every case is checked against float64 in the run that is
timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from card import Case, describe, measure, rotated, write_page
from sparse_multiply import copy_of, decoded_two_level, draw_two_level
from torch import Tensor
from torch.nn.functional import linear

from featherweight.kernels.cuda import bitmap, two_level, two_of_four
from featherweight.kernels.cuda.stream import MOST_TOKENS, Chunked, multiply
from featherweight.kernels.cuda.stream_values import multiply_many


def storages(n: int, k: int) -> Iterator[tuple[str, tuple[str, dict[str, int]], Chunked, Tensor]]:
    """Name, kernel, chunks and values of one weight of every kind."""
    generator = torch.Generator("cuda").manual_seed(n + k)
    parts, sparse = draw_two_level(n, k, False, 0.01, "cuda")
    levels = two_level.encode(parts, 3, 3, sparse)
    yield "SpQR, 3 bits, 1 %", two_level.kernel(levels), levels.chunked, decoded_two_level(parts, sparse)
    chosen = torch.rand(n, k // 4, 4, generator=generator, device="cuda").topk(2, -1).indices
    mask = torch.zeros(n, k // 4, 4, dtype=torch.bool, device="cuda").scatter_(2, chosen, True).view(n, k)
    places = chosen.sort(-1).values.view(n, k // 2).to(torch.uint8)
    values = torch.randn(n, k, generator=generator, device="cuda").bfloat16() / 64
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator, device="cuda")
    scales = (0.002 + 0.003 * torch.rand(n, k // 128, generator=generator, device="cuda")).half()
    coded = two_of_four.encode_codes(codes[mask].view(n, k // 2), places, scales, None, 128)
    decoded = (codes.float() - 8) * scales.float().repeat_interleave(128, 1) * mask
    yield "2:4, 4 bits", two_of_four.kernel(coded), coded.chunked, decoded
    kept = torch.rand(n, k, generator=generator, device="cuda") < 0.5
    bits = bitmap.encode(values, kept)
    yield "bitmap 50 %, bf16", bitmap.kernel(bits), bits.chunked, values.float() * kept


def by_sixteens(kernel: tuple[str, dict[str, int]], x: Tensor, weight: Chunked, y: Tensor) -> Tensor:
    """Every sixteen tokens by themselves."""
    for first in range(0, len(x), MOST_TOKENS):
        multiply(*kernel, x[first : first + MOST_TOKENS], weight, None, y[first : first + MOST_TOKENS])
    return y


def cases(x: Tensor, kernel: tuple[str, dict[str, int]], weight: Chunked, values: Tensor) -> list[Case]:
    """bf16 on the values; both ways."""
    n, k = values.shape
    product, flops = x.double() @ values.double().T, 2.0 * n * k * len(x)
    dense = rotated(lambda _: values.bfloat16(), 2 * n * k)
    copies = rotated(partial(copy_of, weight), weight.nbytes)
    y = x.new_empty(len(x), n)
    return [
        Case("bf16", [partial(linear, x, each) for each in dense], 0, flops, product),
        Case("made dense", [partial(multiply_many, *kernel, x, each, None, y) for each in copies], 0, flops, product),
        Case("by sixteens", [partial(by_sixteens, kernel, x, each, y) for each in copies], 0, flops, product),
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["28672x4096", "4096x4096"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128, 256, 2048])
    parser.add_argument("--replays", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("many-tokens"))
    options = parser.parse_args()
    card, rows = describe("cuda"), []
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        for name, kernel, weight, values in storages(n, k):
            for tokens in options.tokens:
                x = torch.randn(tokens, k, device="cuda").bfloat16()
                about = {"shape": shape, "storage": name, "tokens": tokens}
                rows += measure(cases(x, kernel, weight, values), card, about, options.replays, cold=False)
                write_page(options.output, "many-tokens", "Products of many tokens with weights in chunks", card, rows)


if __name__ == "__main__":
    main()
