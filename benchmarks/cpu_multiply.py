"""One token (or a few) times a weight on a CPU, one thread: dense in torch, torch's own 4-bit product, the C kernel.

    python benchmarks/cpu_multiply.py --output benchmarks/cpu-multiply        # half a minute on an idle machine; ratios are to float32
    python benchmarks/cpu_multiply.py --shapes 256x512 --tokens 1 --output try

Weights are random codes in groups; every weight read per call lies in enough copies to exceed 256 MB, so they come from memory. Errors
are against float64 on the decoded codes: torch's 4-bit product takes scales in bfloat16, and is slower by 30 times with other activations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Case, measure, measure_card, rotated, write_page
from torch import Tensor

from featherweight.kernels.cpu import integer
from featherweight.packed.integer import Integer


def random_weight(rows: int, inputs: int, bits: int, group: int) -> Integer:
    """Any bytes are codes; scales such that a weight has the spread of a trained one; zero points anywhere."""
    description = Integer.describe((rows, inputs), bits, group, symmetric=False, scale_dtype=torch.float16)
    stored = {
        name: torch.randint(0, 256, shape, dtype=dtype)
        if dtype == torch.uint8
        else ((torch.rand(shape) + 0.5) / 2**bits / 10).to(dtype)
        for name, (shape, dtype) in Integer.layout(description).items()
    }
    return Integer.from_tensors(description, stored)


def copies(weight: Integer) -> list[Integer]:
    """The weight in memory of its own, again and again."""
    made = rotated(lambda index: {name: tensor.clone() for name, tensor in weight.tensors().items()}, weight.nbytes)
    return [Integer.from_tensors(weight.description(), tensors) for tensors in made]


def torch_int4(weight: Integer, x: Tensor) -> list[Callable[[], Tensor]]:
    """Calls of torch's product; `w = s (q − 8) + b` in bfloat16."""
    codes = integer_codes(weight).to(torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = weight.scales.float()
    offsets = (8 - weight.unpacked_zeros().float()) * scales
    both = torch.stack([scales.T, offsets.T], -1).bfloat16().contiguous()
    operands = rotated(lambda index: (packed.clone(), both.clone()), packed.nbytes + both.nbytes)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return [partial(multiply, x, each, weight.group_size, scale) for each, scale in operands]


def integer_codes(weight: Integer) -> Tensor:
    """`[out, in]` uint8."""
    from featherweight.kernels.bits import unpack

    return unpack(weight.codes, weight.bits, weight.inputs)


def cases(rows: int, inputs: int, tokens: int, group: int, widths: list[int], levels: list[int]) -> Iterator[Case]:
    """The first is float32."""
    x, narrow = torch.randn(tokens, inputs), torch.randn(tokens, inputs).bfloat16()
    weights = {bits: random_weight(rows, inputs, bits, group) for bits in widths}
    dense = weights[4].dequantize()
    product, flops = torch.nn.functional.linear, 2.0 * rows * inputs * tokens
    for name, given in (("float32, torch", x), ("bfloat16, torch", narrow)):
        held = dense.to(given.dtype)
        calls = [partial(product, given, each) for each in rotated(lambda index, held=held: held.clone(), held.nbytes)]
        yield Case(name, calls, held.nbytes, flops, given.double() @ held.double().T)
    if group in (32, 64, 128, 256):
        yield Case(
            "4-bit, torch, bfloat16",
            torch_int4(weights[4], narrow),
            weights[4].nbytes,
            flops,
            narrow.double() @ dense.double().T,
        )
    for bits, weight in weights.items():
        for given in (x, narrow):
            reference = given.double() @ weight.dequantize(torch.float64).T
            for level in levels if bits == 4 else levels[:1]:
                calls = [partial(product_at(level, each), given) for each in copies(weight)]
                name = f"{bits}-bit, {integer.LEVELS[level]}, {str(given.dtype).removeprefix('torch.')}"
                yield Case(name, calls, weight.nbytes, flops, reference)


def product_at(level: int, weight: Integer) -> integer.IntegerProduct:
    """The C kernel by the instructions of `level`."""
    best, integer._level = integer._level, lambda: level  # type: ignore[assignment]
    try:
        return integer.IntegerProduct(weight)
    finally:
        integer._level = best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["4096x4096", "14336x4096", "576x1536"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--bits", nargs="*", type=int, default=[4, 8, 3, 2], help="4 first; several only with one token")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--replays", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("cpu-multiply"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    card, table = measure_card("cpu"), list[dict[str, Any]]()
    levels = [level for level in (2, 1) if level <= integer._level()] or [0]
    for shape in options.shapes:
        rows, inputs = map(int, shape.split("x"))
        for tokens in options.tokens:
            widths = options.bits if tokens == 1 else options.bits[:1]
            asked = list(cases(rows, inputs, tokens, options.group, widths, levels))
            table += measure(asked, card, {"out": rows, "in": inputs, "tokens": tokens}, replays=options.replays)
            write_page(options.output, "cpu-multiply", "Products on a CPU", card, table, __doc__.strip().split("\n\n")[-1])


if __name__ == "__main__":
    main()
