"""Products with integer codes on CUDA beside bf16 and torch's own 4-bit kernel: one row per shape, width and number of tokens.

    python benchmarks/multiply.py --output benchmarks/multiply-h200        # all shapes; minutes
    python benchmarks/multiply.py --shapes 28672x4096 --bits 4 --tokens 1 16 --output /tmp/multiply

Codes are random, groups of 128 share a bf16 scale. Every case is checked against float64 in the run that is timed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from card import Case, measure, measure_card, rotated, write_page
from torch import Tensor
from torch.nn.functional import linear

from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.prepared import PreparedInteger

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


def cases(n: int, k: int, bits: int, tokens: int) -> list[Case]:
    """bf16, ours, and at 4 bits torch's."""
    generator = torch.Generator("cuda").manual_seed(99)
    x = torch.randn(tokens, k, generator=generator, device="cuda").to(torch.bfloat16)
    reference = x.double() @ values(*draw(n, k, bits, 0), bits, torch.float64).T
    size, flops = n * k * bits // 8 + 2 * n * k // GROUP, 2.0 * n * k * tokens
    dense = rotated(lambda index: values(*draw(n, k, bits, index), bits, torch.float32).to(torch.bfloat16), 2 * n * k)
    found = [
        Case("bf16", [partial(linear, x, each) for each in dense], 2 * n * k, flops, reference),
        Case("ours", [partial(each, x) for each in rotated(partial(ours, n, k, bits), size)], size, flops, reference),
    ]
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
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("multiply"))
    options = parser.parse_args()
    card, rows = measure_card("cuda"), []
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        for bits in options.bits:
            for tokens in options.tokens:
                about = {"shape": shape, "bits": bits, "tokens": tokens}
                rows += measure(cases(n, k, bits, tokens), card, about, options.replays, cold=False)
                write_page(options.output, "multiply", "Products with integer codes", card, rows, __doc__.splitlines()[-1])


if __name__ == "__main__":
    main()
