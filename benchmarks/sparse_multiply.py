"""Products of few tokens with SpQR's, 2:4 and bitmap weights beside cuBLAS in bf16, on CUDA: one row per shape, storage and tokens.

    python benchmarks/sparse_multiply.py --output benchmarks/sparse-multiply        # all shapes; minutes
    python benchmarks/sparse_multiply.py --shapes 8192x8192 --tokens 1 --cuts 8,1,4,2 16,1,4,1 --output /tmp/sparse

Weights are random, half of them dropped where they are sparse, 1 % outliers. More than 16 tokens are multiplied by dense values,
made in the same call. Every case is checked against float64 on its own de-quantised values in the run that is timed. `--cuts` times
other cuts of the work as well (warps that multiply, warps that collect, chunks in flight, blocks on a multiprocessor); `--card`
takes the card's own figures from an earlier run of card.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Card, Case, measure, measure_card, rotated, write_page
from torch import Tensor
from torch.nn.functional import linear

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda import bitmap, bitmap_codes, stream, two_level, two_of_four
from featherweight.kernels.cuda.sparse_list import SparseParts
from featherweight.kernels.cuda.stream import Chunked
from featherweight.kernels.cuda.stream_values import multiply_many
from featherweight.kernels.cuda.two_level import TwoLevelParts

SHAPES = ("28672x4096", "8192x8192", "4096x14336", "4096x4096", "57344x8192")
TOKENS = (1, 4, 8, 16)

TEXT = """Activations are bf16; half of all weights are dropped where they are sparse; "order" is SpQR with groups in the order of the walk.
`floor_us` is the time of a kernel that only reads as many bytes, from an earlier run of `card.py` on the card.
[What binds](what-binds.md)."""

#: A storage: its name, its weight, the product with a copy of it, its values.
Storage = tuple[str, Chunked, Callable[..., Tensor], Tensor]


def draw_two_level(n: int, k: int, ordered: bool, share: float, device: str) -> tuple[TwoLevelParts, SparseParts | None]:
    """3-bit codes in groups of 16 whose scales and zeros have 3 bits, and the entries of a sparse term."""
    generator = torch.Generator(device).manual_seed(n + k)
    draw = partial(torch.rand, generator=generator, device=device)
    integers = partial(torch.randint, 0, 8, dtype=torch.uint8, device=device, generator=generator)
    blocks, groups = -(-n // 16), k // 16

    def grids(low: float, spread: float, zero: float) -> Tensor:
        both = torch.stack([low + spread * draw(blocks, groups), zero * (1 + draw(blocks, groups))], -1)
        return both.half().float().repeat_interleave(16, 0)[:n]

    index = torch.arange(k, device=device) // 16
    if ordered:
        index = index[torch.randperm(k, generator=generator, device=device)]
    parts = TwoLevelParts(
        integers((n, k)), integers((n, groups)), integers((n, groups)), grids(0.002, 0.003, -3), grids(0.3, 0.1, -2.5), index
    )
    if not share:
        return parts, None
    chosen = (draw(n * k) < share).nonzero()[:, 0]
    values = 0.2 * torch.randn(len(chosen), generator=generator, device=device)
    return parts, SparseParts(chosen // k, chosen % k, values.half())


def decoded_two_level(parts: TwoLevelParts, sparse: SparseParts | None) -> Tensor:
    """Its values, float32."""
    pairs = ((parts.scale_codes, parts.scale_grids), (parts.zero_codes, parts.zero_grids))
    scale, zero = ((grids[..., 0] * (codes.float() - grids[..., 1]))[:, parts.index] for codes, grids in pairs)
    dense = scale * (parts.codes.float() - zero)
    if sparse is not None:
        dense[sparse.rows, sparse.columns] += sparse.values.float()
    return dense


def two_level_storages(n: int, k: int, device: str) -> Iterator[Storage]:
    """SpQR at 3 bits with 1 % outliers, without them, and with groups in the order of the walk."""
    for name, ordered, share in (
        ("spqr 3 bits, 1 %", False, 0.01),
        ("spqr 3 bits", False, 0.0),
        ("spqr 3 bits, 1 %, order", True, 0.01),
    ):
        parts, sparse = draw_two_level(n, k, ordered, share, device)
        weight = two_level.encode(parts, 3, 3, sparse)

        yield name, weight.chunked, product(two_level, weight), decoded_two_level(parts, sparse)


def product(module: Any, weight: Any) -> Callable[..., Tensor]:
    """Of activations with copies of a weight, `(x, copy, y, shape)`; without a shape by dense values."""

    def multiply(x: Tensor, chunked: Chunked, y: Tensor, shape: stream.Shape | None) -> Tensor:
        if shape is None:
            return multiply_many(*module.kernel(weight), x, chunked, None, y)
        found: Tensor = module.multiply(x, replace(weight, chunked=chunked), None, y, shape)
        return found

    return multiply


def draw_codes(n: int, k: int, device: str) -> tuple[torch.Generator, Tensor, Tensor, Tensor, Tensor]:
    """A generator, bf16 values, 4-bit codes, their scales in groups of 128, and what they decode to."""
    generator = torch.Generator(device).manual_seed(n + k)
    values = torch.randn(n, k, generator=generator, device=device).bfloat16() / 64
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator, device=device)
    scales = (0.002 + 0.003 * torch.rand(n, k // 128, generator=generator, device=device)).half()
    return generator, values, codes, scales, (codes.float() - 8) * scales.float().repeat_interleave(128, 1)


def two_of_four_storages(n: int, k: int, device: str) -> Iterator[Storage]:
    """2:4 as 4-bit codes in groups of 128 and as bf16 values."""
    generator, values, codes, scales, decoded = draw_codes(n, k, device)
    chosen = torch.rand(n, k // 4, 4, generator=generator, device=device).topk(2, -1).indices
    mask = torch.zeros(n, k // 4, 4, dtype=torch.bool, device=device).scatter_(2, chosen, True).view(n, k)
    places = chosen.sort(-1).values.view(n, k // 2).to(torch.uint8)
    by_codes = two_of_four.encode_codes(codes[mask].view(n, k // 2), places, scales, None, 128)
    yield "2:4, 4 bits", by_codes.chunked, product(two_of_four, by_codes), decoded * mask
    by_values = two_of_four.encode_values(values[mask].view(n, k // 2), places)
    yield "2:4, bf16", by_values.chunked, product(two_of_four, by_values), values.float() * mask


def bitmap_storages(n: int, k: int, device: str) -> Iterator[Storage]:
    """Half of all bf16 values, and of all 4-bit codes in groups of 128, with a bitmap."""
    generator, values, codes, scales, decoded = draw_codes(n, k, device)
    mask = torch.rand(n, k, generator=generator, device=device) < 0.5
    by_values = bitmap.encode(values, mask)
    yield "bitmap 50 %, bf16", by_values.chunked, product(bitmap, by_values), values.float() * mask
    by_codes = bitmap_codes.encode(codes, mask, scales, None, 128)
    yield "bitmap 50 %, 4 bits", by_codes.chunked, product(bitmap_codes, by_codes), decoded * mask


STORAGES = {"spqr": two_level_storages, "2:4": two_of_four_storages, "bitmap": bitmap_storages}


def cases(storages: Sequence[Storage], x: Tensor, cuts: Sequence[tuple[int, ...]]) -> list[Case]:
    """cuBLAS, and every storage by its default cut and by others."""
    n, k = storages[0][3].shape
    dense = rotated(lambda _: torch.randn(n, k, device=x.device, dtype=x.dtype) / 64, 2 * n * k)
    found = [Case("bf16", [partial(linear, x, each) for each in dense], 2 * n * k, reference=x.double() @ dense[0].double().T)]
    for name, chunked, multiply, values in storages:
        expected, y = x.double() @ values.double().T, x.new_empty(len(x), n)
        copies = rotated(partial(copy_of, chunked), chunked.nbytes)
        for cut in (None, *cuts):
            try:
                shape = shape_of(chunked, len(x), cut)
            except FeatherweightError as problem:
                print(name, cut, problem, flush=True)
                continue
            label = name if cut is None else f"{name}, cut {cut}"
            found.append(
                Case(label, [partial(multiply, x, each, y, shape) for each in copies], chunked.nbytes, reference=expected)
            )
    return found


def copy_of(weight: Chunked, _: int) -> Chunked:
    """The same in other memory."""
    return replace(weight, **{name: value.clone() for name, value in vars(weight).items() if isinstance(value, Tensor)})


def shape_of(weight: Chunked, tokens: int, cut: tuple[int, ...] | None) -> stream.Shape | None:
    """The default shape, or that of one cut; None where values are made dense."""
    if tokens > stream.MOST_TOKENS:
        return None
    if cut is None:
        return stream.default_shape(weight, tokens)
    return stream.shape_of(*weight.cut, tokens, weight.segment, *stream.limits(weight.chunks.device), cuts=(cut,))


def read_card(path: Path) -> Card:
    """What card.py wrote of this card."""
    return Card(**json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """Every shape and number of tokens; the page is written after each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sparse-multiply"))
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--cuts", nargs="*", default=[], help="e.g. 16,1,4,1; for one token only")
    parser.add_argument("--card", type=Path)
    parser.add_argument("--storages", nargs="+", default=STORAGES, choices=STORAGES)
    options = parser.parse_args()
    card = measure_card("cuda") if options.card is None else read_card(options.card)
    rows = []
    for text in options.shapes:
        n, k = map(int, text.split("x"))
        storages = [storage for name in options.storages for storage in STORAGES[name](n, k, "cuda")]
        for tokens in options.tokens:
            x = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16)
            cuts = [tuple(map(int, cut.split(","))) for cut in options.cuts] if tokens == 1 else []
            rows += measure(cases(storages, x, cuts), card, {"n": n, "k": k, "m": tokens}, 10, cold=False)
            torch.cuda.empty_cache()
        write_page(options.output, "sparse-multiply", "Products with SpQR's, 2:4 and bitmap weights", card, rows, TEXT)


if __name__ == "__main__":
    main()
