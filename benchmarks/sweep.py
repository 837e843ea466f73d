"""Time the column solver against the eager loop of public GPTQ code, with the floor that matrix products set.

    python benchmarks/sweep.py                     # CPU, small shapes
    python benchmarks/sweep.py --device cuda       # adds 4096x4096, 11008x4096, 4096x11008 and the growth with size
    python benchmarks/sweep.py --decisions         # 4096x4096 and 11008x4096 by every method of second order
    python benchmarks/sweep.py --json sweep.json

Inputs are seeded. Times are medians in milliseconds after one warm-up; both solvers get the same Hessian, grid and groups, and
`loss` is tr(E H E^T) / tr(W H W^T), which must not be higher for ours.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from featherweight.grids.uniform import UniformGrid
from featherweight.kernels.registry import explain
from featherweight.methods.alps import ALPS
from featherweight.methods.base import Problem
from featherweight.methods.gptq import GPTQ
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.packed.dense import Dense
from featherweight.solvers.damping import factorise
from featherweight.solvers.sweep import sweep
from featherweight.statistics.inputs import InputStatistics

SHAPES = {"cpu": ["1536x576", "1024x1024"], "cuda": ["1536x576", "4096x4096", "11008x4096", "4096x11008"]}
GROWTH = {"cpu": [256, 512, 1024], "cuda": [1024, 2048, 4096, 8192]}


DECISIONS = {
    "gptq 4-bit g128": GPTQ(fit="minmax"),
    "gptq 4-bit g128, weighted fit": GPTQ(),
    "sparsegpt 50 %": SparseGPT(),
    "sparsegpt 2:4": SparseGPT(pattern="2:4"),
    "sparsegpt 50 %, refit": SparseGPT(refit=20),
    "joint 50 % + 4-bit": SparseGPT(bits=4, fit="minmax"),
    "spqr 3-bit": SpQR(max_outlier_share=0.2),
    "spqr 3-bit, no outliers": SpQR(outlier_threshold=None),
    "spqr 3-bit, weighted fit": SpQR(fit="weighted", outlier_bits=8, max_outlier_share=0.2, second_group_size=64),
    "alps 50 %": ALPS(),
}


@dataclass
class Result:
    """One line of the table; milliseconds and bytes."""

    rows: int
    inputs: int
    eager_ms: float | None
    factorise_ms: float
    sweep_ms: float
    floor_ms: float
    eager_peak_bytes: int | None
    peak_bytes: int
    eager_loss: float | None
    loss: float

    @property
    def total_ms(self) -> float:
        """Factorisation and walk."""
        return self.factorise_ms + self.sweep_ms


def make_inputs(rows: int, inputs: int, device: str) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs with a few large features; from seed 0, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    tokens, rank = min(2 * inputs, 8192), 64
    scales = torch.rand(inputs, generator=generator) ** 4 * 4 + 0.2
    common = torch.randn(tokens, rank, generator=generator) @ torch.randn(rank, inputs, generator=generator) / rank**0.5
    x = ((common + 0.5 * torch.randn(tokens, inputs, generator=generator)) * scales).to(device)
    weight = (torch.randn(rows, inputs, generator=generator) / inputs**0.5).to(device)
    return weight, x.T @ x / tokens


def eager_gptq(weight: Tensor, hessian: Tensor, grid: UniformGrid, group_size: int, block: int = 128) -> Tensor:
    """Public GPTQ code's loop: three-step factor, one column at a time, products per block of 128; returns the values."""
    work, damped = weight.clone(), hessian.clone()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    decoded = torch.empty_like(work)
    for start in range(0, work.shape[1], block):
        stop = min(start + block, work.shape[1])
        part, factor = work[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(part)
        for column in range(stop - start):
            if (start + column) % group_size == 0:
                parameters = grid.fit(work[:, start + column : start + column + group_size])
            value = part[:, column : column + 1]
            rounded = grid.decode(grid.encode(value, parameters), parameters)
            decoded[:, start + column] = rounded[:, 0]
            errors[:, column] = ((value - rounded) / factor[column, column])[:, 0]
            part[:, column:] -= errors[:, column : column + 1] @ factor[column : column + 1, column:]
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return decoded


def timed(function: Callable[[], object], device: str, repeats: int) -> tuple[float, int]:
    """Median milliseconds over `repeats` runs after one warm-up, and peak bytes (allocated on CUDA, resident on the CPU)."""
    durations = []
    for run in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if run:
            durations.append((time.perf_counter() - started) * 1e3)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(durations), peak


def product_rate(device: str, repeats: int) -> float:
    """Measured float32 operations a second of a large product."""
    size = 8192 if device == "cuda" else 1536
    a = torch.randn(size, size, device=device)
    milliseconds, _ = timed(lambda: a @ a, device, repeats)
    return 2 * size**3 / (milliseconds / 1e3)


def measure(rows: int, inputs: int, options: argparse.Namespace, rate: float, eager: bool) -> Result:
    """Both solvers on one shape."""
    weight, hessian = make_inputs(rows, inputs, options.device)
    grid = UniformGrid(options.bits, fit_by=options.fit)
    factor = factorise(hessian)

    def loss(values: Tensor) -> float:
        return float(factor.row_energy(weight - values).sum() / factor.row_energy(weight).sum())

    factorise_ms, _ = timed(lambda: factorise(hessian), options.device, options.repeats)
    sweep_ms, peak = timed(lambda: sweep(weight, factor, grid, options.group_size), options.device, options.repeats)
    ours = loss(sweep(weight, factor, grid, options.group_size).decoded)
    floor = (rows * inputs**2 + inputs**3 / 3) / rate * 1e3
    if not eager:
        return Result(rows, inputs, None, factorise_ms, sweep_ms, floor, None, peak, None, ours)
    eager_ms, eager_peak = timed(lambda: eager_gptq(weight, hessian, grid, options.group_size), options.device, 1)
    theirs = loss(eager_gptq(weight, hessian, grid, options.group_size))
    return Result(rows, inputs, eager_ms, factorise_ms, sweep_ms, floor, eager_peak, peak, theirs, ours)


def measure_decisions(rows: int, inputs: int, options: argparse.Namespace) -> list[dict]:
    """Milliseconds of whole methods (factorisation, walk, packing) on one linear, and their ratio to GPTQ."""
    weight, hessian = make_inputs(rows, inputs, options.device)
    statistics = InputStatistics(1, hessian.diagonal().clone(), hessian)
    problem = Problem({"linear": weight}, {"linear": Dense(weight.to(torch.bfloat16))}, statistics, torch.bfloat16)
    lines = []
    for name, method in DECISIONS.items():
        milliseconds, peak = timed(lambda: method.compress(problem), options.device, options.repeats)  # noqa: B023
        error = method.compress(problem)["linear"].facts["relative_error"]
        lines.append({"rows": rows, "inputs": inputs, "method": name, "ms": milliseconds, "peak": peak, "error": error})
        ratio = milliseconds / lines[0]["ms"]
        print(f"| {rows}x{inputs} | {name} | {milliseconds:.1f} | {ratio:.2f} | {peak / 1e6:.0f} | {error:.5f} |", flush=True)
    return lines


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| rows x in | eager ms | ours ms | factorise | sweep | floor ms | ours / floor | speed-up | eager MB | ours MB "
        "| eager loss | loss |",
        "|---|" + "---|" * 11,
    ]
    for result in results:
        eager = [f"{result.eager_ms:.1f}", f"{result.eager_ms / result.total_ms:.1f}x"] if result.eager_ms else ["-", "-"]
        peak = f"{result.eager_peak_bytes / 1e6:.0f}" if result.eager_peak_bytes else "-"
        theirs = f"{result.eager_loss:.6f}" if result.eager_loss is not None else "-"
        lines.append(
            f"| {result.rows}x{result.inputs} | {eager[0]} | {result.total_ms:.1f} | {result.factorise_ms:.1f} "
            f"| {result.sweep_ms:.1f} | {result.floor_ms:.1f} | {result.total_ms / result.floor_ms:.1f} | {eager[1]} | {peak} "
            f"| {result.peak_bytes / 1e6:.0f} | {theirs} | {result.loss:.6f} |"
        )
    return "\n".join(lines)


def growth_table(results: list[Result]) -> str:
    """Milliseconds over sizes, with the exponent from one size to the next."""
    lines = ["| n x n | factorise ms | sweep ms | total ms | exponent |", "|---|---|---|---|---|"]
    for previous, result in zip([None, *results], results, strict=False):
        steps = math.log(result.inputs / previous.inputs) if previous else 1.0
        exponent = f"{math.log(result.total_ms / previous.total_ms) / steps:.2f}" if previous else "-"
        lines.append(
            f"| {result.inputs} | {result.factorise_ms:.1f} | {result.sweep_ms:.1f} | {result.total_ms:.1f} | {exponent} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="*", help="rows x inputs, as in 4096x11008")
    parser.add_argument("--growth", nargs="*", type=int, help="sizes of square weights")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--fit", default="minmax", choices=["minmax", "mse", "weighted"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-eager", action="store_true", help="leave the eager loop out")
    parser.add_argument("--decisions", action="store_true", help="time whole methods instead")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    rate = product_rate(options.device, options.repeats)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    kernels = explain("sweep_block", {"columns": 128}, options.device)
    kernel = next(name for name, runs, _ in kernels if runs)
    print(f"{name}; torch {torch.__version__}; block kernel: {kernel}; float32 products at {rate / 1e12:.2f} TFLOP/s")
    print(f"{options.bits} bits, group {options.group_size}, fit {options.fit}, median of {options.repeats}\n")
    if options.decisions:
        print("| rows x in | method | ms | ratio to gptq | peak MB | relative error |\n|---|---|---|---|---|---|")
        shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes or ["4096x4096", "11008x4096"]]
        lines = [line for rows, inputs in shapes for line in measure_decisions(rows, inputs, options)]
        if options.json:
            options.json.write_text(json.dumps(lines, indent=1))
        return
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes or SHAPES[options.device]]
    results = [measure(rows, inputs, options, rate, not options.no_eager) for rows, inputs in shapes]
    print(table(results) + "\n")
    sizes = GROWTH[options.device] if options.growth is None else options.growth
    growth = [measure(size, size, options, rate, False) for size in sizes]
    print(growth_table(growth))
    if options.json:
        record = {"device": name, "torch": torch.__version__, "kernel": kernel, "product_rate": rate, "bits": options.bits}
        record |= {"group_size": options.group_size, "fit": options.fit, "repeats": options.repeats}
        record |= {"shapes": [asdict(result) for result in results], "growth": [asdict(result) for result in growth]}
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
