"""Coding tokens for the cache on a GPU: our kernels against the same in torch operations, and against bandwidth.

    python benchmarks/kv_encode.py --output FOLDER [--points 1x1,1x128,8x32768] [--codecs qjl,integer-2]

8 key heads of 128, bf16. Every call codes other tokens, of more than 256 MB together; `bytes` are those of tokens and codes. `torch`
is the codec without our kernels, on the same GPU, its launches in a CUDA graph as well. `differ` is the share of bits of codes or
signs that are not those of the codec on a CPU, over the first sequence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Timing, describe, measure_card, rotated, time_together, write_page
from torch import Tensor

from featherweight.kernels.cuda import cache_encode
from featherweight.kernels.reference.integer_encode import integer_encode
from featherweight.kernels.reference.qjl import qjl_encode
from featherweight.kv_cache import CacheCodec, make_codec

HEADS, DIM = 8, 128
CODECS: dict[str, dict[str, Any]] = {
    "qjl": {"codec": "qjl", "sketch": 256}, "qjl-plain": {"codec": "qjl", "sketch": 256, "outliers": 0},
    "qjl-first": {"codec": "qjl", "sketch": 512, "outlier_sketch": 128},
    "keys, 2 bits by channel": {"codec": "integer", "bits": 2, "axis": "channel"},
    "keys, 4 bits by channel": {"codec": "integer", "bits": 4, "axis": "channel"},
    "values, 2 bits by token": {"codec": "integer", "bits": 2}, "values, 4 bits by token": {"codec": "integer", "bits": 4},
    "8 bits by token": {"codec": "integer", "bits": 8, "group_size": 64},
}  # fmt: skip
Encode = Callable[[Tensor], Mapping[str, Tensor]]


def encoders(codec: Any, constants: Mapping[str, Tensor]) -> tuple[Encode, Encode]:
    """Ours, and torch's."""
    if codec.name == "qjl":
        rest = (constants["projection"], codec.outliers, codec.lengths(DIM)[1], codec.group_size)
        return (lambda x: cache_encode.qjl_encode(x, *rest)), (lambda x: qjl_encode(x, *rest))

    rest = (codec.bits, codec.axis, codec.group_size)
    return (lambda x: cache_encode.integer_encode(x, *rest)), (lambda x: integer_encode(x, *rest))


def differ(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Share of bits of codes, or of signs."""
    total, wrong = 0, 0
    for name, tensor in expected.items():
        if "signs" in name or name == "codes":
            other = found[name][:1].cpu() ^ tensor
            wrong += sum(int((other >> bit & 1).sum()) for bit in range(8))
            total += 8 * other.numel()
    return wrong / total


def measure(name: str, batch: int, tokens: int, replays: int) -> dict[str, Any] | None:
    """One line; None where the tokens are no whole groups."""
    codec: CacheCodec = make_codec(CODECS[name])
    if tokens % codec.group:
        return None
    drawn = codec.constants(DIM, torch.Generator().manual_seed(3))
    ours, torchs = encoders(codec, {key: value.cuda() for key, value in drawn.items()})
    copies = rotated(
        lambda index: torch.randn(batch, HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16),
        batch * HEADS * tokens * DIM * 2,
    )[:64]
    made = ours(copies[0])
    sample = copies[0][:1, :, :4096].cpu()
    expected = codec.encode(sample, drawn)
    part = {key: made[key][:1, :, : tensor.shape[2]] for key, tensor in expected.items()}
    size = copies[0].nbytes + sum(tensor.nbytes for tensor in made.values())
    cases = {"ours": [partial(ours, x) for x in copies], "torch": [partial(torchs, x) for x in copies[: 4 if size < 1e8 else 1]]}
    times: Mapping[str, Timing] = time_together(cases, replays)
    return {
        "batch": batch, "tokens": tokens, "codec": name, "us": times["ours"].median, "torch_us": times["torch"].median,
        "ratio": times["torch"].median / times["ours"].median, "mb": size / 1e6, "tb_s": size / times["ours"].median / 1e6,
        "differ": differ(part, expected), "us_q25": times["ours"].low, "us_q75": times["ours"].high,
    }  # fmt: skip


def main() -> None:
    """All codecs at every point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="1x1,8x1,1x128,8x128,1x8192,8x32768")
    parser.add_argument("--codecs", default=",".join(key for key in CODECS if "," not in key), help="or `all`")
    parser.add_argument("--replays", type=int, default=8)
    parser.add_argument("--brief", action="store_true", help="do not measure the card itself")
    parser.add_argument("--output", type=Path, default=Path("kv-encode"))
    options = parser.parse_args()
    card, rows = describe("cuda") if options.brief else measure_card("cuda"), []
    for point in options.points.split(","):
        batch, tokens = map(int, point.split("x"))
        for name in CODECS if options.codecs == "all" else options.codecs.split(","):
            if row := measure(name, batch, tokens, options.replays):
                rows.append(row)
                print(
                    "  ".join(
                        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                    )
                )
            torch.cuda.empty_cache()
        write_page(options.output, "kv-encode", "Coding tokens for the cache", card, rows)


if __name__ == "__main__":
    main()
