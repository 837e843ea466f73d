"""Tokens a second of whole models, batch 1, one CUDA graph a token: random weights made on the device, in several storages.

    python benchmarks/decode_graph.py 3b:bf16 3b:4-bit "3b:4-bit, 8-bit head" --device cuda --output FOLDER
    python benchmarks/decode_graph.py                # a tiny shape on the CPU, without graphs, in seconds

A prompt of 128 tokens is read, then 256 are made greedily. `ms` is the mean over all steps by events, replays queued one behind
another; `streamed` is the rate at which a host that reads every token gets them. With `--nothing` the step is also timed without the
blocks' linear layers, once as products that take norm, activation and sum along, and once with these as kernels of their own.
`sampled_ms`, with `--sampled`, is a step that draws at temperature 0.8 with top-k 50 and top-p 0.95. `difference` is that of the
first step's logits from the model's own forward, relative to their norm; `error` and `own_error`, with `--oracle`, are those of both
from the model in float32. Kernels are compiled when first needed, which takes minutes for many cases, unless `--together` lets all
cases do it side by side. Writes `decode_graph.csv` and `decode_graph.md`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from decode_models import CHAINS, FORMS, LLAMA, SHAPES, build, in_float32
from decode_tune import tune
from torch import Tensor
from transformers import LlamaConfig

from featherweight.decoding.runner import Runner
from featherweight.decoding.sampling import Sampling
from featherweight.evaluation.timing import device_name, peak_memory, random_tokens, reset_peak
from featherweight.packed.lower import explain
from featherweight.reports.speed import markdown_table

#: Tokens a second at 4 bits that are aimed at, and what this card's best peer reached in such a harness.
GOALS = {("3b", "4-bit"): "800, then 950", ("7b", "4-bit"): "600, then 700", ("8b", "4-bit"): "500, then 580"}
PEERS = {
    ("3b", "bf16"): 412, ("7b", "bf16"): 239, ("8b", "bf16"): 218, ("3b", "4-bit"): 554, ("7b", "4-bit"): 430,
    ("8b", "4-bit"): 387,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Nothing:
    """In the place of a product: an output that nobody wrote, or a sum to which nothing is added."""

    outputs: int
    norms: bool
    gates: bool
    adds: bool
    out: Tensor

    def __call__(self, x: Any, *, norm: Any = None, activation: str | None = None) -> Tensor:
        """As a product."""
        return self.out[:, : self.outputs // (1 if activation is None else 2)]

    def add(self, x: Tensor, residual: Tensor) -> None:
        """As a product."""


def without_linears(runner: Runner, fuses: bool) -> None:
    """Take the blocks' products out of a runner."""
    decoder = runner.step.decoder
    widest = max(block.gate_up.outputs for block in decoder.blocks)
    out = torch.zeros(1, widest, dtype=decoder.dtype, device=runner.step.device)
    blocks = tuple(
        dataclasses.replace(
            block,
            **{
                name: Nothing(getattr(block, name).outputs, fuses, fuses, fuses, out)
                for name in ("qkv", "output", "gate_up", "down")
            },
        )
        for block in decoder.blocks
    )
    runner.step.decoder = dataclasses.replace(decoder, blocks=blocks)
    runner._graphs.clear()


def time_steps(runner: Runner, ids: Tensor, tokens: int, repeats: int = 1) -> float:
    """Milliseconds of a step, replays queued one behind another; the best of the repeats."""
    on_gpu, best = runner.step.device.type == "cuda", float("inf")
    for _ in range(repeats):
        begin(runner, ids)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        started = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        for _ in range(tokens):
            runner.advance()
        for mark in marks[1:]:
            mark.record()
        if on_gpu:
            torch.cuda.synchronize()
        took = marks[0].elapsed_time(marks[1]) if on_gpu else 1e3 * (time.perf_counter() - started)
        best = min(best, took / tokens)
    return best


def stream(runner: Runner, ids: Tensor, tokens: int) -> float:
    """Tokens a second as a host gets them that reads every one."""
    begin(runner, ids)
    started = time.perf_counter()
    for _ in runner.tokens(tokens):
        pass
    return (tokens - 1) / (time.perf_counter() - started)


def begin(runner: Runner, ids: Tensor) -> None:
    """Read the prompt again, and one token, with which a step is recorded where that is wanted."""
    runner.crop(0)
    runner.read(ids)
    runner.advance()
    if runner.step.device.type == "cuda":
        torch.cuda.synchronize()


def agreement(model: Any, runner: Runner, ids: Tensor, tokens: int) -> str:
    """How many greedy tokens are those of the model's own forwards, before the first that is not."""
    runner.crop(0)
    runner.read(ids)
    made = [each[0] for each in runner.tokens(tokens)]
    told = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)[
        0, ids.shape[1] :
    ].tolist()
    same = next((place for place, pair in enumerate(zip(made, told, strict=True)) if pair[0] != pair[1]), tokens)
    return f"{same} of {tokens}"


def errors(model: Any, runner: Runner, ids: Tensor) -> dict[str, float]:
    """How far the logits of the next token are from those of the model in float32, relative to their norm: ours, and the model's."""
    token = runner.step.chosen.token[:, None]
    with torch.no_grad():
        exact = in_float32(model)(input_ids=torch.cat((ids, token), 1), logits_to_keep=1).logits[:, -1]
        found = {"error": runner.step.forward(runner.step.length), "own_error": runner._forward(token, runner.get_seq_length())}
    return {name: float((logits.float() - exact).norm() / exact.norm()) for name, logits in found.items()}


def measured(shape: str, form: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: the step as it is, and for dense weights also without its linear layers."""
    config = LlamaConfig(**SHAPES[shape], **LLAMA)
    device = torch.device(options.device)
    reset_peak(device)
    model = build(config, form, options.device)
    weights = sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())
    ids = random_tokens(model, 1, options.context, device)
    runner = Runner(model, 1, options.context + options.tokens + 2)
    runner.read(ids)
    runner.compare()
    told = errors(model, runner, ids) if options.oracle else {"error": "", "own_error": ""}
    reset_peak(device)
    if options.tune:
        print(tune(runner), flush=True)
    ms, streamed = time_steps(runner, ids, options.tokens), stream(runner, ids, options.tokens)
    sampled: float | str = ""
    if options.sampled:
        runner.sample(Sampling(0.8, 50, 0.95), 0)
        sampled = time_steps(runner, ids, options.tokens)
        runner.sample(Sampling(), 0)
    product = model.model.layers[0].mlp.gate_proj
    kernel = (
        next((name for name, runs, _ in explain(product.packed, device) if runs), "") if hasattr(product, "packed") else "dense"
    )
    row = {
        "shape": shape, "form": form, "ms": ms, "tokens_per_second": 1e3 / ms, "streamed": streamed, "sampled_ms": sampled,
        "goal": GOALS.get((shape, form), ""), "best_peer": PEERS.get((shape, form), ""), "weights_gb": weights / 1e9,
        "cache_gb": runner.nbytes / 1e9, "peak_gb": peak_memory(device) / 1e9, "difference": runner.difference, **told,
        "same_tokens": agreement(model, runner, ids, min(32, options.tokens)) if options.agree else "", "kernel": kernel,
    }  # fmt: skip
    rows = [row]
    for fuses in (True, False) if options.nothing and form == "bf16" else ():
        without_linears(runner, fuses)
        ms = time_steps(runner, ids, options.tokens)
        name = f"nothing, {'fused' if fuses else 'not fused'}"
        rows.append({**dict.fromkeys(row, ""), "shape": shape, "form": name, "ms": ms, "tokens_per_second": 1e3 / ms})
    return rows


def compile_together(cases: Sequence[str], options: argparse.Namespace) -> None:
    """Run every case for two tokens in a process of its own, all at once: what they compile is kept on disk."""
    told = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--device",
        options.device,
        "--context",
        str(options.context),
        "--tokens",
        "2",
    ]
    told += ["--sampled"] * options.sampled
    running = [subprocess.Popen([*told, case], stdout=subprocess.DEVNULL) for case in cases]
    for case, process in zip(cases, running, strict=True):
        if process.wait():
            print(f"{case}: compiling ended with {process.returncode}", flush=True)


def write(folder: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Everything so far, as CSV and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "decode_graph.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    about = f"{device_name(options.device)}, torch {torch.__version__}, batch 1, {options.context} + {options.tokens} tokens"
    about += ", cuts of integer products tried first" if options.tune else ""
    lines = [
        "# Whole-model decode, one graph a token",
        "",
        about,
        "",
        *markdown_table(list(rows[0]), [cells(row) for row in rows]),
    ]
    (folder / "decode_graph.md").write_text("\n".join(lines) + "\n")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text."""
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", default=["tiny:bf16", "tiny:4-bit"], help=f"{', '.join(SHAPES)} : {'; '.join([*FORMS, *CHAINS])}"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--agree", action="store_true", help="compare 32 greedy tokens with transformers' own")
    parser.add_argument("--nothing", action="store_true", help="also time the step without its linear layers")
    parser.add_argument("--sampled", action="store_true", help="also time steps that draw, cut by top-k and top-p")
    parser.add_argument("--oracle", action="store_true", help="compare logits with those of the model in float32")
    parser.add_argument("--tune", action="store_true", help="try other cuts of the integer products first")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--together", action="store_true", help="compile the kernels of all cases side by side first")
    options = parser.parse_args()
    if options.together:
        started = time.perf_counter()
        compile_together(options.cases, options)
        print(f"compiled in {time.perf_counter() - started:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        started = time.perf_counter()
        try:
            rows += measured(*case.split(":", 1), options)
        except Exception:
            traceback.print_exc()
            continue
        finally:
            gc.collect()
            if options.device != "cpu":
                torch.cuda.empty_cache()
        print("\n".join(markdown_table(list(rows[0]), [cells(row) for row in rows[-3:]])), flush=True)
        print(f"{time.perf_counter() - started:.1f} s", flush=True)
        if options.output:
            write(options.output, rows, options)


if __name__ == "__main__":
    main()
