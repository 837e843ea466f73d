"""Products of few tokens with SpQR's and sparse weights beside cuBLAS in bf16, on an H200.

    python benchmarks/sparse_multiply.py --output FOLDER [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Case, describe, measure, measure_card, rotated, write_page
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda import stream, two_level, two_of_four
from featherweight.kernels.cuda.stream import Chunked
from featherweight.kernels.cuda.two_level import SparseParts, TwoLevelParts
from featherweight.kernels.cuda.two_of_four import DeviceTwoOfFour

SHAPES = ((4096, 4096), (4096, 14336), (8192, 8192), (28672, 4096), (57344, 8192))
QUICK = ((28672, 4096), (8192, 8192), (4096, 4096), (4096, 14336))
TOKENS = (1, 4, 8, 16)


def draw_two_level(n: int, k: int, bits: int, ordered: bool, share: float, device: str) -> tuple[TwoLevelParts, SparseParts | None]:
    """A random two-level weight in groups of 16 whose scales and zeros have 3 bits, and its sparse entries."""
    generator = torch.Generator(device).manual_seed(n + k)
    draw = partial(torch.rand, generator=generator, device=device)
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device=device, generator=generator)
    groups = k // 16
    second = [torch.randint(0, 8, (n, groups), dtype=torch.uint8, device=device, generator=generator) for _ in range(2)]
    step = (0.002 + 0.003 * draw(-(-n // 16), groups, 1)).half().float()
    scale = torch.cat([step, (-3 - 2 * draw(step.shape)).half().float()], -1).repeat_interleave(16, 0)[:n]
    tall = (0.3 + 0.1 * draw(step.shape)).half().float()
    zero = torch.cat([tall, (-4 - draw(step.shape)).half().float()], -1).repeat_interleave(16, 0)[:n]
    index = torch.arange(k, device=device) // 16
    if ordered:
        index = index[torch.randperm(k, generator=generator, device=device)]
    parts = TwoLevelParts(codes, *second, scale, zero, index)
    if not share:
        return parts, None
    chosen = torch.randperm(n * k, generator=generator, device=device)[: int(share * n * k)].sort().values
    values = (0.2 * torch.randn(len(chosen), generator=generator, device=device)).half()
    return parts, SparseParts(chosen // k, chosen % k, values)


def dense_of(parts: TwoLevelParts, sparse: SparseParts | None) -> Tensor:
    """Its values, float32."""
    number = [
        grids[..., 0] * (codes.float() - grids[..., 1])
        for codes, grids in ((parts.scale_codes, parts.scale_grids), (parts.zero_codes, parts.zero_grids))
    ]
    scale, zero = (each[:, parts.index] for each in number)
    dense = scale * (parts.codes.float() - zero)
    if sparse is not None:
        dense[sparse.rows, sparse.columns] += sparse.values.float()
    return dense


def copies_of(weight: Chunked) -> list[Chunked]:
    """As many as no cache holds."""
    def copy(_: int) -> Chunked:
        tensors = {name: value.clone() for name, value in vars(weight).items() if isinstance(value, Tensor)}
        return replace(weight, **tensors)

    return rotated(copy, weight.nbytes)


def spqr_cases(n: int, k: int, x: Tensor, variants: list[dict[str, Any]], device: str) -> tuple[Tensor, list[Case]]:
    """The float64 product, and SpQR at 3 bits with and without the list, in its own order and in the walk's."""
    cases, reference = [], torch.empty(0)
    for name, bits, ordered, share in (("spqr3 +1%", 3, False, 0.01), ("spqr3", 3, False, 0.0), ("spqr3 +1% order", 3, True, 0.01)):
        parts, sparse = draw_two_level(n, k, bits, ordered, share, device)
        dense = dense_of(parts, sparse)
        product = x.double() @ dense.double().T
        del dense
        weight = two_level.encode(parts, bits, 3, sparse)
        copies = copies_of(weight.chunked)
        for variant in variants if name == "spqr3 +1%" else variants[:1]:
            try:
                shape = shape_with(weight.chunked, len(x), **variant)
            except FeatherweightError as problem:
                print(name, variant, problem)
                continue
            outputs = x.new_empty(len(x), n)
            calls = [partial(two_level.multiply, x, replace(weight, chunked=each), None, outputs, shape) for each in copies]
            label = " ".join(f"{key}{value}" for key, value in variant.items())
            cases.append(Case(f"{name} {label}".strip(), calls, weight.chunked.nbytes, reference=product))
        reference = product
    return reference, cases


def weights_two_of_four(n: int, k: int, device: str) -> list[tuple[str, DeviceTwoOfFour, Tensor]]:
    """2:4 as bf16 values and as 4-bit codes in groups of 128, each with its values in float32."""
    generator = torch.Generator(device).manual_seed(n + k)
    chosen = torch.rand(n, k // 4, 4, generator=generator, device=device).topk(2, -1).indices
    mask = torch.zeros(n, k // 4, 4, dtype=torch.bool, device=device).scatter_(2, chosen, True).view(n, k)
    values = torch.randn(n, k, generator=generator, device=device).bfloat16() / 64
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator, device=device)
    scales = (0.002 + 0.003 * torch.rand(n, k // 128, generator=generator, device=device)).half()
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8, generator=generator, device=device)
    places = chosen.sort(-1).values.view(n, k // 2).to(torch.uint8)
    kept = codes[mask].view(n, k // 2)

    def decoded(points: Tensor) -> Tensor:
        return (codes.float() - points.float().repeat_interleave(128, 1)) * scales.float().repeat_interleave(128, 1) * mask

    return [
        ("2:4 bf16", two_of_four.encode_values(values[mask].view(n, k // 2), places), values.float() * mask),
        ("2:4 int4", two_of_four.encode_codes(kept, places, scales, None, 128), decoded(torch.full_like(zeros, 8))),
        ("2:4 int4 zeros", two_of_four.encode_codes(kept, places, scales, zeros, 128), decoded(zeros)),
    ]


def sparse_cases(n: int, k: int, x: Tensor, device: str) -> list[Case]:
    """2:4 as bf16 values and as 4-bit codes."""
    cases = []
    for name, weight, dense in weights_two_of_four(n, k, device):
        product, outputs = x.double() @ dense.double().T, x.new_empty(len(x), n)
        calls = [
            partial(two_of_four.multiply, x, replace(weight, chunked=each), None, outputs) for each in copies_of(weight.chunked)
        ]
        cases.append(Case(name, calls, weight.chunked.nbytes, reference=product))
    return cases


def shape_with(weight: Chunked, tokens: int, **variant: Any) -> stream.Shape:
    """The default cut, or with other warps and stages."""
    processors, shared = stream._limits(weight.chunks.device)
    return stream.shape_of(*weight.cut, tokens, weight.segment, processors, shared, **variant)


def bf16_case(n: int, k: int, x: Tensor, device: str) -> Case:
    """cuBLAS."""
    weights = rotated(lambda _: torch.randn(n, k, device=device, dtype=x.dtype) / 64, 2 * n * k)
    call: Callable[..., Tensor] = torch.nn.functional.linear
    return Case("bf16", [partial(call, x, each) for each in weights], 2 * n * k, reference=x.double() @ weights[0].double().T)


def main() -> None:
    """Every shape and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sparse-multiply"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    card = describe("cuda") if options.quick else measure_card("cuda")
    rows = []
    for n, k in QUICK if options.quick else SHAPES:
        for tokens in (1, 16) if options.quick else TOKENS:
            x = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16)
            variants: list[dict[str, Any]] = [{}, *({"cuts": (cut,)} for cut in ((16, 1, 4, 1), (12, 1, 4, 1), (14, 1, 3, 2)) if tokens == 1)] if options.quick else [{}]
            _, cases = spqr_cases(n, k, x, variants, "cuda")
            cases += sparse_cases(n, k, x, "cuda")
            rows += measure([bf16_case(n, k, x, "cuda"), *cases], card, {"n": n, "k": k, "m": tokens}, 12, cold=False)
            torch.cuda.empty_cache()
    write_page(options.output, "sparse-multiply", "Products with SpQR's and sparse weights", card, rows)


if __name__ == "__main__":
    main()
