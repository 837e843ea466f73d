"""Products with integer codes on CUDA beside bf16 and torch's own 4-bit kernel: one row per shape, width and number of tokens.

    python benchmarks/multiply.py --output benchmarks/multiply-h200        # all shapes; minutes
    python benchmarks/multiply.py --shapes 28672x4096 --bits 4 --tokens 1 16 --cuts --output /tmp/multiply

Codes are random, groups of 128 share a bf16 scale. Every case is checked against float64 in the run that is timed. `--cuts` times other
cuts of the work as well, which `choices.py` chooses from; `--seconds` stops early, what comes first in the lists is done first.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from card import Case, measure, measure_card, rotated, write_page
from torch import Tensor
from torch.nn.functional import linear

from featherweight.kernels.cuda.batch import UNIT, BatchShape, multiply_batch, shared_bytes
from featherweight.kernels.cuda.choices import FEWEST_KEPT, choose_batch, choose_kept, choose_shape
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.kept import KeptShape, multiply_kept
from featherweight.kernels.cuda.kept import shared_bytes as kept_bytes
from featherweight.kernels.cuda.multiply import MOST_TOKENS, SHARED_BYTES, Shape, memory_of, multiply
from featherweight.kernels.cuda.prepared import PreparedInteger, multiply_dense

Cut = Shape | KeptShape | BatchShape | int  # a number: bytes of dense values made at a time
GROUP = 128
SHAPES = {
    "Llama-2-7B": ("12288x4096", "4096x4096", "22016x4096", "4096x11008"),
    "Llama-3.1-8B": ("6144x4096", "28672x4096", "4096x14336"),
    "Llama-3.2-3B": ("5120x3072", "3072x3072", "16384x3072", "3072x8192"),
    "Llama-3.1-70B": ("10240x8192", "8192x8192", "57344x8192", "8192x28672"),
}


def draw(n: int, k: int, bits: int, index: int) -> tuple[Tensor, Tensor]:
    """Codes `[n, k]` and scales `[n, k / 128]` of copy `index`."""
    generator = torch.Generator("cuda").manual_seed(index)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, device="cuda", dtype=torch.uint8)
    scales = torch.rand(n, k // GROUP, generator=generator, device="cuda").add_(0.5).div_(2**bits * k**0.5)
    return codes, scales.to(torch.bfloat16)


def values(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The dense weight `[n, k]`."""
    groups = codes.to(dtype).sub_(2 ** (bits - 1)).unflatten(1, (-1, GROUP))
    return groups.mul_(scales.to(dtype)[:, :, None]).flatten(1)


def ours(n: int, k: int, bits: int, index: int) -> PreparedInteger:
    """A copy in the kernels' layout."""
    codes, scales = draw(n, k, bits, index)
    return PreparedInteger(DeviceCodes.of(codes, scales, None, bits, GROUP))


def tinygemm(n: int, k: int, index: int) -> tuple[Tensor, Tensor]:
    """A copy as torch's 4-bit kernel wants it: packed codes, scales with zero points."""
    codes, scales = draw(n, k, 4, index)
    packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4) | codes[:, 1::2], 8)
    return packed, torch.stack([scales.T, torch.zeros_like(scales.T)], -1).contiguous()


def cuts(weight: DeviceCodes, tokens: int) -> list[Cut]:
    """Cuts of the work to try."""
    if tokens <= 16:
        return [*few_cuts(weight, tokens), *(batch_cuts(weight, tokens, 8 if tokens <= 8 else 16) if tokens > 4 else ())]
    if tokens <= 64:
        return batch_cuts(weight, tokens, 32 if tokens <= 32 else 64)
    slabs = [16 << 20, 128 << 20, 256 << 20]
    return slabs if tokens > 512 else [*batch_cuts(weight, tokens, 64), *batch_cuts(weight, tokens, 128)[:2], *slabs]


def few_cuts(weight: DeviceCodes, tokens: int) -> list[Cut]:
    """Of the kernels for up to 16 tokens."""
    count = processors(weight.codes.device)
    if tokens > 1 and (kept := choose_kept(weight, tokens, count)) is not None:
        fit = [
            cut
            for cut in [replace(kept, ahead=3 - kept.ahead)]
            if kept_bytes(weight, cut, tokens) <= SHARED_BYTES // cut.resident - 1024
        ]
        return [kept, *fit, choose_shape(weight, tokens, count)]
    unit, splits = 256 if weight.bits == 8 else 512, 1 if tokens * weight.inputs <= 1 << 16 else 2
    grid = (1, splits, count // splits)
    if tokens == 1:
        plain = Shape(unit, 1, 1, 8, 2, 1, 2 * count, 2)
        return [plain, replace(plain, held=1)]
    tried = [Shape(unit, 1, 2, 8, *grid, 1, True), Shape(256, 1, 2, 8, *grid, 2, True)]
    if tokens <= 8:
        tried += [Shape(unit, 1, 1, 8, 2, 1, 2 * count, 1, True)]
    return [cut for cut in tried if memory_of(weight, cut, tokens)[2] <= SHARED_BYTES // cut.resident - 1024]


def batch_cuts(weight: DeviceCodes, tokens: int, size: int) -> list[Cut]:
    """Of the kernel for more, with blocks of `size` tokens: as many splits as there are processors for, and half of them."""
    found: list[Cut] = []
    for groups in ((4, 2, 1) if weight.rows <= 8192 else (4, 2)) if size <= 64 else (2,):
        blocks = -(-weight.rows // (64 * groups)) * -(-tokens // size)
        splits = max((each for each in (1, 2, 4, 8) if each * blocks <= 1.1 * processors(weight.codes.device)), default=1)
        fits = [each for each in range(2, 9) if shared_bytes(weight, BatchShape(size, groups, each)) <= SHARED_BYTES - 1024]
        for each in ({splits, max(1, splits // 2)} if groups == 4 else {splits}) if fits else ():
            stages = min(fits[-1], 1 + weight.inputs // UNIT // each)
            found += [
                BatchShape(size, groups, stages, each, ahead) for ahead in ((False, True) if groups == 4 else (groups == 2,))
            ]
    return found


def call(cut: Cut, x: Tensor, weight: DeviceCodes, y: Tensor) -> Tensor:
    """The product by one cut."""
    if isinstance(cut, int):
        return multiply_dense(x, None, weight, y, cut)
    if isinstance(cut, KeptShape):
        return multiply_kept(x, weight, None, y, cut)
    return multiply_batch(x, weight, None, y, cut) if isinstance(cut, BatchShape) else multiply(x, weight, None, y, cut)


def name_of(cut: Cut) -> str:
    """For the table."""
    if isinstance(cut, int):
        return f"dense, {cut >> 20} MB"
    kind = "batch" if isinstance(cut, BatchShape) else "kept" if isinstance(cut, KeptShape) else "few"
    return f"{kind} {' '.join(str(int(value)) for value in vars(cut).values())}"


def build_together(shapes: list[str], widths: list[int], tokens: list[int], other_tokens: list[int]) -> None:
    """Compile the kernels of all cuts side by side; what fails here fails again where it is used."""
    wanted = {}
    for shape in shapes:
        n, k = map(int, shape.split("x"))
        for bits in widths:
            empty = torch.empty(-(-n // 16), k * bits // 2, dtype=torch.int32, device="cuda")
            weight = DeviceCodes(
                n, k, bits, GROUP, empty, torch.empty(1, 1, 8, 1, 2, dtype=torch.bfloat16, device="cuda"), None
            )
            for count in tokens if bits == widths[0] else other_tokens:
                own = choose_batch(weight, count, 132) if count > MOST_TOKENS else choose_shape(weight, count, 132)
                if FEWEST_KEPT <= count <= MOST_TOKENS:
                    own = choose_kept(weight, count, 132) or own
                for cut in (own, *(cuts(weight, count) if bits == widths[0] else ())):
                    if not isinstance(cut, int):
                        wanted[bits, count > 8, cut] = bits, count, cut
    print("kernels to compile:", len(wanted), flush=True)

    def build(bits: int, count: int, cut: Cut) -> None:
        torch.cuda.set_device(0)
        torch.cuda.current_stream()
        weight = ours(64, 8192, bits, 0).weight
        x = torch.zeros(count, 8192, dtype=torch.bfloat16, device="cuda")
        call(cut, x, weight, x.new_empty(count, 64))

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(build, *each) for each in wanted.values()]:
            if done.exception() is not None:
                print(repr(done.exception())[:300])
    torch.cuda.synchronize()


@lru_cache(maxsize=1)
def material(n: int, k: int, bits: int) -> tuple[list[Tensor], list[PreparedInteger], Tensor]:
    """Dense copies in bf16, ours, and the first one's values in float64."""
    dense = rotated(lambda index: values(*draw(n, k, bits, index), bits, torch.float32).to(torch.bfloat16), 2 * n * k)
    weights = rotated(partial(ours, n, k, bits), n * k * bits // 8 + 2 * n * k // GROUP)
    return dense, weights, values(*draw(n, k, bits, 0), bits, torch.float64)


def cases(n: int, k: int, bits: int, tokens: int, others: bool = False) -> list[Case]:
    """bf16, ours, and at 4 bits torch's; other cuts of ours."""
    generator = torch.Generator("cuda").manual_seed(99)
    x = torch.randn(tokens, k, generator=generator, device="cuda").to(torch.bfloat16)
    dense, weights, exact = material(n, k, bits)
    reference = x.double() @ exact.T
    size, flops = n * k * bits // 8 + 2 * n * k // GROUP, 2.0 * n * k * tokens
    found = [
        Case("bf16", [partial(linear, x, each) for each in dense], 2 * n * k, flops, reference),
        Case("ours", [partial(each, x) for each in weights], size, flops, reference),
    ]
    y = x.new_empty(tokens, n)
    for cut in cuts(weights[0].weight, tokens) if others else ():
        found.append(Case(name_of(cut), [partial(call, cut, x, each.weight, y) for each in weights], size, flops, reference))
    if bits == 4 and tokens <= 16:
        packed = rotated(partial(tinygemm, n, k), size)
        calls = [partial(torch.ops.aten._weight_int4pack_mm, x, codes, GROUP, scales) for codes, scales in packed]
        found.append(Case("tinygemm", calls, size, flops, reference))
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[shape for shapes in SHAPES.values() for shape in shapes])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 8, 3, 2])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 64, 256, 2048])
    parser.add_argument("--other-tokens", nargs="*", type=int, default=[1, 16, 64], help="for the second and later of the bits")
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--cuts", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--output", type=Path, default=Path("multiply"))
    options = parser.parse_args()
    start = time.monotonic()
    if options.cuts:
        build_together(options.shapes, options.bits, options.tokens, options.other_tokens)
    card, rows = measure_card("cuda"), []
    asked = [
        (shape, bits, tokens)
        for bits in options.bits
        for shape in options.shapes
        for tokens in (options.tokens if bits == options.bits[0] else options.other_tokens)
    ]
    for shape, bits, tokens in asked:
        if time.monotonic() - start > options.seconds:
            print("no time for", shape, bits, tokens)
            continue
        n, k = map(int, shape.split("x"))
        about = {"shape": shape, "bits": bits, "tokens": tokens}
        rows += measure(
            cases(n, k, bits, tokens, options.cuts and bits == options.bits[0]), card, about, options.replays, cold=False
        )
        write_page(options.output, "multiply", "Products with integer codes", card, rows, __doc__.splitlines()[-3])


if __name__ == "__main__":
    main()
