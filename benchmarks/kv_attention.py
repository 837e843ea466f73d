"""One token's attention over a coded cache on a GPU, against bf16 attention over an exact one in the same run.

    python benchmarks/kv_attention.py --output FOLDER [--points 1x4096,8x32768] [--caches qjl,kivi-2] [--seconds 60]

Heads of Llama-3.1-8B: 32 query heads, 8 key heads of 128, bf16. Codes are drawn at random, as no time depends on them, and lie
in memory as the cache holds them: all keys in code, the newest 128 values exact. The error is that of the first sequence against
float64 attention over the same codes; the ratio is to cuDNN's attention through torch. `bytes` are those of the cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Case, describe, measure, measure_card, rotated, write_page
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from featherweight.kernels.cache_part import CachePart
from featherweight.kernels.cuda.cache_attention import Lengths, Shape, attend
from featherweight.kernels.cuda.compiler import build
from featherweight.kv_cache import CacheCodec, make_codec
from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.registry import codec_settings

HEADS, KEY_HEADS, DIM, EXACT = 32, 8, 128, 128
POINTS = ",".join(f"{batch}x{tokens}" for tokens in (32768, 131072, 4096, 16384) for batch in (1, 8, 32))
SCALING = DIM**-0.5


def cache_codecs(name: str) -> tuple[CacheCodec, CacheCodec]:
    """Of keys and values: a preset's, or QJL as its authors have it in the first layers, or without outliers."""
    if name == "qjl-plain":
        keys = {"codec": "qjl", "sketch": 256, "outliers": 0}
        return make_codec(keys), make_codec({"codec": "integer", "bits": 2})
    settings = read_settings(name.removesuffix("-first"), DIM)
    return settings.codecs(0 if name.endswith("-first") else settings.first_layers)


def draw_part(codec: CacheCodec, tokens: int, coded: int, batch: int, seed: int) -> CachePart:
    """Codes at random, as the cache would hold them, of numbers near those of a normal distribution."""
    generator = torch.Generator("cuda").manual_seed(seed)
    codes = {}
    for name, (each, shape, dtype) in codec.layout(DIM, torch.bfloat16).items():
        size = (batch, KEY_HEADS, coded // each, *shape)
        if dtype == torch.uint8:
            codes[name] = torch.randint(0, 256, size, generator=generator, device="cuda", dtype=dtype)
            if name == "outliers":  # different ones of a group
                codes[name].remainder_(DIM // shape[0]).add_(
                    torch.arange(shape[0], device="cuda", dtype=dtype) * (DIM // shape[0])
                )
        else:
            spread = torch.rand(size, generator=generator, device="cuda", dtype=dtype) * 0.4 + 0.8
            codes[name] = spread * SPREADS[name](codec)
    exact = torch.randn(batch, KEY_HEADS, tokens - coded, DIM, generator=generator, device="cuda", dtype=torch.bfloat16)
    constants = {key: value.cuda() for key, value in codec.constants(DIM, torch.Generator().manual_seed(3)).items()}
    method = codec.scores if codec.name == "qjl" else codec.mix
    return CachePart(codec_settings(codec), codes, constants, coded, exact, partial(method, codes=codes, constants=constants))


SPREADS: Mapping[str, Callable[[Any], float]] = {
    "norm": lambda codec: 11.0, "outlier_norm": lambda codec: 6.0, "gain": lambda codec: 1.0, "mean": lambda codec: 0.5,
    "scale": lambda codec: 4.0 / 2**codec.bits, "minimum": lambda codec: -2.0,
}  # fmt: skip


def exact_attention(query: Tensor, keys: CachePart, values: CachePart, codecs: tuple[CacheCodec, CacheCodec]) -> Tensor:
    """Of the first sequence, float64, over what the codes stand for, head by head."""
    out = []
    for head in range(KEY_HEADS):
        whole = []
        for part, codec in ((keys, codecs[0]), (values, codecs[1])):
            codes = {name: tensor[:1, head : head + 1] for name, tensor in part.codes.items()}
            decoded = codec.decode(codes, part.constants, torch.float32)[0, 0]
            whole.append(torch.cat([decoded.double(), part.exact[0, head].double()]))
        asked = query[0, head * 4 : head * 4 + 4, 0].double()
        out.append((asked @ whole[0].T * SCALING).softmax(-1) @ whole[1])
    return torch.cat(out)[None, :, None]


def coded_case(name: str, batch: int, tokens: int, shape: Shape | None = None) -> Case:
    """Our kernel over one kind of cache."""
    codecs = cache_codecs(name)
    bits = sum(codec.stored_bits(DIM, torch.bfloat16) for codec in codecs)
    size = int(batch * KEY_HEADS * DIM * (tokens * bits + EXACT * (16 - codecs[1].stored_bits(DIM, torch.bfloat16))) / 8)

    def make(index: int) -> tuple[Tensor, CachePart, CachePart]:
        query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
        keys = draw_part(codecs[0], tokens, codecs[0].settled(tokens), batch, 2 * index)
        return query, keys, draw_part(codecs[1], tokens, codecs[1].settled(tokens), batch, 2 * index + 1)

    copies = rotated(make, size)
    calls = [partial(_first, query, keys, values, shape) for query, keys, values in copies]
    return Case(name, calls, size, reference=exact_attention(*copies[0], codecs))


def _first(query: Tensor, keys: CachePart, values: CachePart, shape: Shape | None) -> Tensor:
    return attend(query, keys, values, None, SCALING, shape=shape)[:1]


def exact_cases(batch: int, tokens: int) -> list[Case]:
    """cuDNN's and FlashAttention's over bf16."""
    size = 2 * batch * KEY_HEADS * DIM * tokens * 2
    copies = rotated(
        lambda index: [
            torch.randn(batch, heads, count, DIM, device="cuda", dtype=torch.bfloat16)
            for heads, count in ((HEADS, 1), (KEY_HEADS, tokens), (KEY_HEADS, tokens))
        ],
        size,
    )
    query, keys, values = (each[:1].double() for each in copies[0])
    grouped = query.view(1, KEY_HEADS, -1, DIM)
    reference = torch.cat(
        [(grouped[0, at] @ keys[0, at].T * SCALING).softmax(-1) @ values[0, at] for at in range(KEY_HEADS)]
    )[None, :, None]  # fmt: skip

    def call(backend: SDPBackend, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)[:1]

    backends = {"bf16, cuDNN": SDPBackend.CUDNN_ATTENTION, "bf16, FlashAttention": SDPBackend.FLASH_ATTENTION}
    return [
        Case(name, [partial(call, backend, *copy) for copy in copies], size, reference=reference)
        for name, backend in backends.items()
    ]


def compile_kernels(names: list[str]) -> None:
    """Every kernel that the caches take, several at a time."""
    jobs = set()

    def note(source: str, _: str, constants: Mapping[str, int], *rest: object) -> None:
        jobs.add((source, tuple(sorted(constants.items()))))

    for name in names:
        for batch, tokens in ((1, 4096), (1, 131072), (8, 131072)):
            codecs = cache_codecs(name)
            query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
            keys, values = (draw_part(codec, 512, codec.settled(512), batch, 0) for codec in codecs)
            attend(query, keys, values, None, SCALING, Lengths(most=tokens), launch=note)
    major, minor = torch.cuda.get_device_capability()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: build(job[0], dict(job[1]), f"sm_{major}{minor}"), jobs))


def main() -> None:
    """All caches at every point, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=POINTS)
    parser.add_argument("--caches", default="qjl-plain,qjl,qjl-first,kivi-2,kivi-4,rotated-3,rotated-4,int8")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600, help="begin no point after so many")
    parser.add_argument("--brief", action="store_true", help="do not measure the card itself")
    parser.add_argument("--output", type=Path, default=Path("kv-attention"))
    options = parser.parse_args()
    started, names = time.monotonic(), options.caches.split(",")
    compile_kernels(names)
    print(f"compiled after {time.monotonic() - started:.1f} s", flush=True)
    card, rows = describe("cuda") if options.brief else measure_card("cuda"), []
    for point in options.points.split(","):
        if time.monotonic() - started > options.seconds:
            print(f"no time for {point}", flush=True)
            continue
        batch, tokens = map(int, point.split("x"))
        cases = exact_cases(batch, tokens) + [coded_case(name, batch, tokens) for name in names]
        rows += measure(cases, card, {"batch": batch, "context": tokens}, options.replays, cold=False)
        del cases
        torch.cuda.empty_cache()
        write_page(options.output, "kv-attention", "Attention over a coded cache", card, rows)


if __name__ == "__main__":
    main()
