"""Seconds and peak memory of compressing a whole model, from one random block at its true shape.

    python benchmarks/model_seconds.py --shape llama-2-7b --output results    # on a GPU; 128 x 2048 tokens
    python benchmarks/model_seconds.py --shape tiny --samples 8 --length 256     # on a CPU, to see that it runs

What the engine does with a block is done once on a few tokens to warm up, and then timed by part: its statistics (one forward), its
linears (factor, walk, packing, what the ledger asks), its outputs (another forward), its file. `model` is the sum of the parts
times the blocks: an extrapolation, without the embedding, the head and the first reading of the checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from blocks import SHAPES, prepared, random_model
from solver import markdown_table

import featherweight as fw
from featherweight.engine import block as block_room
from featherweight.engine.block import compress_block
from featherweight.engine.compress import pick_device
from featherweight.engine.progress import silent
from featherweight.engine.task import BlockTask
from featherweight.packed.files import write
from featherweight.packed.linear import dense_cache
from featherweight.planning.recipe import Recipe
from featherweight.statistics.store import StatisticsStore

BLOCKS = {"llama-2-7b": 32, "llama-3.1-8b": 32, "tiny": 2}
SHAPES |= {
    "llama-2-7b": SHAPES["llama-7b"],
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
}
CHAINS: dict[str, dict[str, Any]] = {
    "gptq 4-bit g128": {"method": "gptq", "bits": 4, "group_size": 128},
    "gptq 4-bit g128 minmax": {"method": "gptq", "bits": 4, "group_size": 128, "fit": "minmax"},
    "joint 50 % + 4-bit": {"method": "sparsegpt", "ratio": 0.5, "bits": 4, "group_size": 128, "fit": "minmax"},
    "joint 2:4 + 4-bit": {"method": "sparsegpt", "pattern": "2:4", "bits": 4, "group_size": 128},
    "spqr 3-bit": {"method": "spqr", "bits": 3, "max_outlier_share": 0.2},
    "quip 2-bit": {"method": "quip", "bits": 2, "passes": 2},
}
COLUMNS = ("chain", "statistics", "linears", "forward", "file", "block", "model", "peak_gb")


class Clock:
    """Seconds by part, once the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(COLUMNS[1:5], 0.0)

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        """`work()`, timed."""
        self._wait()
        started = time.perf_counter()
        result = work()
        self._wait()
        self.seconds[part] += time.perf_counter() - started
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@torch.no_grad()
def measure(name: str, model_folder: str, options: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """One chain on the block, once all kernels are compiled."""
    calibration = {"samples": options.samples, "length": options.length, "batch_size": options.batch_size}
    recipe = Recipe.model_validate({"name": name, "steps": [CHAINS[name]], "calibration": calibration})
    plan = fw.plan(model_folder, recipe)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (options.samples, options.length), generator=generator)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    own_gather = block_room.gather
    for part in (tokens[: 2 * options.batch_size], tokens):  # the first warms up
        clock = Clock(device)
        model, inputs = prepared(plan, part, device, dtype)
        block = plan.structure.blocks[0]
        task = BlockTask(
            plan=plan, model=model, block=block, inputs=inputs, prefix="dense", tokens="", store=StatisticsStore(None),
            keep=False, report=silent, dtype=dtype,
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        block_room.gather = lambda *given: clock.time("statistics", lambda: own_gather(*given))  # noqa: B023
        started = time.perf_counter()
        result = compress_block(task)
        clock._wait()
        clock.seconds["linears"] = time.perf_counter() - started - clock.seconds["statistics"]
        block_room.gather = own_gather

        def forward() -> None:
            with dense_cache(model.get_submodule(block), dtype):  # noqa: B023
                inputs.advance([inputs.run(model, block, batch) for batch in range(len(inputs.hidden))])  # noqa: B023

        clock.time("forward", forward)
        tensors = {
            f"{path}.{part}": tensor for path, weight in result.packed.items() for part, tensor in weight.tensors().items()
        }
        clock.time("file", lambda: write(folder / "block.safetensors", tensors))  # noqa: B023
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    seconds = sum(clock.seconds.values())
    return {"chain": name, **clock.seconds, "block": seconds, "model": seconds * BLOCKS[options.shape], "peak_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(BLOCKS), default="tiny")
    parser.add_argument("--model", help="folder with a block of that shape, as an earlier run made it with --keep")
    parser.add_argument("--keep", type=Path, help="only write the random block into this folder")
    parser.add_argument("--device", help="a GPU if there is one")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--chains", nargs="*", help="parts of names; all if not given")
    parser.add_argument("--output", type=Path, help="folder for model_seconds.csv and model_seconds.md")
    options = parser.parse_args()
    if options.keep:
        random_model(options.shape, options.keep)
        return
    device, rows = pick_device(options.device), []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(random_model(options.shape, Path(folder) / "model"))
        for name in CHAINS:
            if options.chains and not any(part in name for part in options.chains):
                continue
            try:
                rows.append(measure(name, model, options, device, Path(folder)))
            except (torch.OutOfMemoryError, fw.FeatherweightError) as problem:
                print(f"{name}: {problem}", flush=True)
                continue
            print(markdown_table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                with (options.output / "model_seconds.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
                (options.output / "model_seconds.md").write_text(markdown_table(rows, COLUMNS))
    print(f"\n{options.shape}, {options.samples} x {options.length} tokens, {device}\n\n{markdown_table(rows, COLUMNS)}")


if __name__ == "__main__":
    main()
