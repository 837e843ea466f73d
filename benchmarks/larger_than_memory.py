"""A model several times larger than the memory it may use: made, compressed, checked, measured, exported, under a limit.

    python benchmarks/larger_than_memory.py --gigabytes 3 --limit 700MB -o FOLDER

FOLDER takes a Llama of that size, written block by block, every block with the values of one random one, and what is made of it; both
go at the end unless --keep. Every verb
runs as its own process `python -m featherweight VERB`, in a memory cgroup of --limit where this process may make one: the kernel then
kills what holds more, page cache being given back first. Its anonymous memory (`RssAnon`) is read every 20 ms meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from solver import markdown_table

from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import resolve_model
from featherweight.packed.files import write
from featherweight.planning.quantities import parse_bytes

COLUMNS = ("verb", "recipe", "model_mb", "limit_mb", "predicted_mb", "anonymous_mb", "seconds", "outcome")
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}
VOCABULARY = 4096  # of the packaged tokenizer
CALIBRATION = ["--samples", "8", "--length", "128"]


def make_checkpoint(folder: Path, size: int) -> None:
    """A random Llama in bfloat16 of about `size` bytes, one file a block."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    shape = {
        **SHAPE,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "dtype": "bfloat16",
    }
    block = 4 * SHAPE["hidden_size"] ** 2 + 3 * SHAPE["hidden_size"] * SHAPE["intermediate_size"]
    outside = 2 * VOCABULARY * SHAPE["hidden_size"]
    layers = max(2, (size // 2 - outside) // block)
    config = LlamaConfig(**shape, num_hidden_layers=layers, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in build_skeleton(config).state_dict().items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "outside"
        parts.setdefault(part, {})[name] = tuple(tensor.shape)
    generator, placed, drawn = torch.Generator().manual_seed(0), {}, {}
    for part, shapes in parts.items():
        for name, shape in shapes.items():
            leaf = name.rpartition(f"layers.{part}.")[2]
            drawn[leaf] = drawn[leaf] if leaf in drawn else _random(shape, generator)
        write(folder / f"model-{part}.safetensors", {name: drawn[name.rpartition(f"layers.{part}.")[2]] for name in shapes})
        placed.update(dict.fromkeys(shapes, f"model-{part}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    for path in resolve_model("demo").folder.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


class Cgroup:
    """A memory cgroup (v1 or v2) of so many bytes, if this process may make one."""

    def __init__(self, limit: int) -> None:
        roots = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
        self.folder: Path | None = None
        for root, file in roots.items():
            folder = root / f"larger-than-memory-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError:
                continue
            if (folder / file).exists():
                (folder / file).write_text(str(limit))
                self.folder = folder
                return
            folder.rmdir()

    def join(self) -> None:
        """Put this process into it."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        """Remove it; nobody may be left inside."""
        if self.folder is not None:
            self.folder.rmdir()


def run(verb: list[str], limit: int) -> tuple[int, float, str, str]:
    """Peak anonymous bytes, seconds, outcome and output of one command under the limit."""
    group, peak = Cgroup(limit), 0
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "featherweight", *verb], stdout=output, stderr=subprocess.STDOUT, preexec_fn=group.join
        )
        try:
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
            group.close()
        output.seek(0)
        told = output.read()
    enforced = "" if group.folder else ", limit not enforced"
    outcome = {0: "done", -9: "killed at the limit"}.get(process.returncode, f"failed ({process.returncode})") + enforced
    return peak, time.perf_counter() - started, outcome, told


def anonymous(process: int) -> int:
    """Bytes of anonymous memory that a process holds."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def steps(folder: Path, recipes: list[str], device: str) -> Iterator[tuple[str, str, list[str]]]:
    """What is done, with its recipe and command line; the first recipe's output is what the verbs after `compress` get."""
    model, made, first = str(folder / "model"), str(folder / recipes[0]), recipes[0]
    for recipe in recipes:
        changes = [f"engine.{name}" for name in ("activations=disk", "keep_statistics=none")]
        if recipe == "rtn-4bit":  # as every format below can hold it
            changes += ["steps.0.group_size=32", "steps.0.symmetric=true"]
        told = [word for change in changes for word in ("--set", change)]
        told += [*CALIBRATION, "--device", device]
        yield "compress", recipe, ["compress", model, "-o", str(folder / recipe), "-r", recipe, *told]
    yield "verify", first, ["verify", made, "--stream"]
    measured = ["--stream", "--length", "128", "--windows", "1"]
    yield "eval", f"{first} against dense", ["eval", made, "--against", model, *measured]
    yield "generate", first, ["generate", made, "The old man", "--tokens", "2", "--stream"]
    for name in ("compressed-tensors", "dense", "gguf"):
        yield f"export {name}", first, ["export", made, "--format", name, "-o", str(folder / name)]


def predicted(folder: Path, recipe: str, device: str) -> int:
    """Host bytes that `fw plan` expects of the run."""
    from featherweight import api
    from featherweight.planning.estimate import estimate

    changes: dict[str, Any] = {"calibration.samples": 8, "calibration.length": 128, "engine.activations": "disk"}
    return estimate(api.plan(folder / "model", recipe, changes=changes), device).host_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the random checkpoint")
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("700MB"))
    parser.add_argument("--recipes", nargs="+", default=["rtn-4bit", "gptq-4bit"])
    parser.add_argument("--device", default="cpu", help="of the compression")
    parser.add_argument("--only", nargs="*", help="verbs; all if not given")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and outputs in FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; also takes larger_than_memory.csv and .md")
    options = parser.parse_args()
    folder = options.output / "files"
    if not (folder / "model" / "config.json").exists():
        make_checkpoint(folder / "model", int(options.gigabytes * 1e9))
    size = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    rows = []
    for verb, recipe, command in steps(folder, options.recipes, options.device):
        if options.only and verb.split()[0] not in options.only:
            continue
        expected = predicted(folder, recipe, options.device) if verb == "compress" else None
        peak, seconds, outcome, output = run(command, options.limit)
        if not outcome.startswith("done"):
            print(output[-2000:], flush=True)
        sizes = {"model_mb": size / 1e6, "limit_mb": options.limit / 1e6, "anonymous_mb": peak / 1e6}
        told = {"predicted_mb": "" if expected is None else f"{expected / 1e6:.0f}", "seconds": seconds, "outcome": outcome}
        rows.append({"verb": verb, "recipe": recipe, **{name: f"{value:.0f}" for name, value in sizes.items()}, **told})
        print(markdown_table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
        with (options.output / "larger_than_memory.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        (options.output / "larger_than_memory.md").write_text(markdown_table(rows, COLUMNS))
    if not options.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
