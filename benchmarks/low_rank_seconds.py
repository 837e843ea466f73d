"""Milliseconds of compressing one linear by QuIP#, CALDERA and LPLR, by part, beside what its arithmetic alone would take.

    python benchmarks/low_rank_seconds.py                                   # CPU, one small shape
    python benchmarks/low_rank_seconds.py --device cuda --output results    # writes low-rank-seconds.csv and .md

Random weights, the Hessian of inputs with a decaying spectrum. `total` is the whole method, median of the repeats after one warm-up;
parts are of one more run in which the device is waited for at every border, each without the parts inside it, so that they
add up to a little more than the total. `floor` is the arithmetic of all matrix products and decompositions, at the float32 rate that a
large product reaches on the device; `split floor` the same at that of a product in bfloat16 halves. `busy` is the share of the
total in which the device computes. `error` is tr(E H Eᵀ) / tr(W H Wᵀ) of what was stored, in float64.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from solver import markdown_table, median, objective, waited
from sweep import make_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from featherweight.kernels.split import split_product
from featherweight.methods import caldera, factors, incoherence, quip
from featherweight.methods.base import Method, Problem
from featherweight.methods.caldera import CALDERA
from featherweight.methods.lplr import LPLR
from featherweight.methods.quip import QuIP
from featherweight.packed.dense import Dense
from featherweight.packed.lattice import Lattice
from featherweight.packed.rotated import Rotated
from featherweight.solvers import vectors
from featherweight.solvers.damping import Factor
from featherweight.solvers.low_rank import Metric
from featherweight.statistics.inputs import InputStatistics

CASES: dict[str, Method] = {
    "quip-2bit": QuIP(),
    "caldera-2bit": CALDERA(),
    "lplr-4bit": LPLR(),
}
SHAPES = {"cpu": ["256x512"], "cuda": ["4096x4096", "11008x4096"]}

#: Part to the functions in which it is spent; what is in none of them is "rest".
PARTS: dict[str, list[tuple[Any, str]]] = {
    "rotations": [(incoherence.Incoherence, "draw"), (incoherence.Incoherence, "weight"), (Rotated, "of")],
    "factor": [(quip, "factorise"), (caldera, "factorise"), (caldera, "downdated")],
    "directions": [(factors, "best_factors")],
    "least squares": [(factors, "fit_factors")],
    "factor codes": [(factors.Format, "pack")],
    "walks": [(vectors, "sweep")],
    "descent": [(vectors, "descend")],
    "packing": [(Lattice, "from_codes")],
    "errors": [(Metric, "energy"), (Factor, "row_energy")],
}
COLUMNS = ("shape", "case", "total", "spread", "floor", "split floor", "busy", *PARTS, "rest", "peak_mb", "error")


class Clock:
    """Milliseconds of every part, without the parts inside it."""

    def __init__(self, device: str) -> None:
        self.device, self.spent, self.stack = device, dict.fromkeys((*PARTS, "rest"), 0.0), ["rest"]
        self.since = waited(device)

    def switch(self, part: str | None) -> None:
        """Go into `part`, or out of the present one."""
        now = waited(self.device)
        self.spent[self.stack[-1]] += (now - self.since) * 1e3
        self.stack.append(part) if part else self.stack.pop()
        self.since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, on this clock."""

        def run(*arguments: Any, **options: Any) -> Any:
            self.switch(part)
            try:
                return function(*arguments, **options)
            finally:
                self.switch(None)

        return run


@contextmanager
def parts_timed(device: str) -> Iterator[Clock]:
    """A clock that runs while this is open."""
    clock, before = Clock(device), []
    for part, places in PARTS.items():
        for place, name in places:
            stored = vars(place)[name]
            before.append((place, name, stored))
            is_class = isinstance(stored, (classmethod, staticmethod))
            timed = clock.timed(part, stored.__func__ if is_class else stored)
            setattr(place, name, type(stored)(timed) if is_class else timed)
    try:
        yield clock
        clock.switch("rest")
    finally:
        for place, name, stored in before:
            setattr(place, name, stored)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of all products and decompositions in `work`."""

    def matrix(scale: float) -> Callable[..., int]:
        return lambda shape, *_, **__: int(scale * shape[-1] ** 2 * shape[-2])

    def solve(shape: Any, right: Any, *_: Any, **__: Any) -> int:
        return int(2 / 3 * shape[-1] ** 3 + 2 * shape[-1] ** 2 * right[-1])

    def product(*arguments: Any, **_: Any) -> int:
        left, right = [each for each in arguments if isinstance(each, Tensor)][-2:]
        count = 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return count // 3 if left.dtype == torch.bfloat16 else count  # three products of halves are one

    product._get_raw = True  # type: ignore[attr-defined]
    aten = torch.ops.aten
    counted = {
        aten.mm: product, aten.addmm: product, aten.addmm_: product,
        aten.linalg_cholesky_ex: matrix(1 / 3), aten.linalg_qr: matrix(4), aten._linalg_eigh: matrix(9),
        aten._linalg_svd: matrix(14), aten._linalg_solve_ex: solve,
    }  # fmt: skip
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        work()
    return counter.get_total_flops()


def rates(device: str) -> tuple[float, float]:
    """Operations a millisecond of a float32 product, and of one in halves."""
    size = 8192 if device == "cuda" else 512
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    products = (partial(product, left, right) for product in (torch.mm, split_product))
    return tuple(2 * size**3 / median(product, device, 5)[0] for product in products)


def busy(work: Callable[[], object], total: float) -> float | None:
    """Share of `total` milliseconds in which kernels run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        work()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in record.key_averages()) / 1e3 / total


def measure(shape: str, case: str, device: str, repeats: int, rate: tuple[float, float]) -> dict[str, Any]:
    """One row of the table."""
    outputs, inputs = map(int, shape.split("x"))
    weight, hessian = make_inputs(outputs, inputs, device)
    sums = InputStatistics(1, hessian.diagonal().clone(), hessian)
    problem = Problem({"linear": weight}, {"linear": Dense(weight)}, sums, torch.bfloat16)
    method = CASES[case]

    def work() -> Any:
        return method.compress(problem)["linear"].weight

    with torch.no_grad():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        total, spread = median(work, device, repeats)
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if device == "cuda" else 0.0
        with parts_timed(device) as clock:
            stored = work()
        count = operations(work)
        share = busy(work, total) if device == "cuda" else None
    row = {"shape": shape, "case": case, "total": total, "spread": spread, "peak_mb": peak, **clock.spent}
    row |= {"floor": count / rate[0], "split floor": count / rate[1], "busy": share}
    return {**row, "error": objective(weight, stored.dequantize().float(), hessian)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="*", help="outputs x inputs, as in 11008x4096")
    parser.add_argument("--cases", nargs="*", help="parts of names; all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for low-rank-seconds.csv and low-rank-seconds.md")
    options = parser.parse_args()
    rate, rows, started = rates(options.device), [], time.perf_counter()
    print(f"float32 {rate[0] / 1e9:.1f}, in halves {rate[1] / 1e9:.1f} TFLOP/s", flush=True)
    for case in CASES:
        for shape in options.shapes or SHAPES[options.device]:
            if options.cases and not any(part in case for part in options.cases):
                continue
            try:
                rows.append(measure(shape, case, options.device, options.repeats, rate))
            except Exception as problem:  # one case must not lose the others
                print(f"{shape} {case}: {type(problem).__name__}: {problem}", flush=True)
                continue
            row = {name: round(value, 5) if isinstance(value, float) else value for name, value in rows[-1].items()}
            print(f"{time.perf_counter() - started:.0f} s", row, flush=True)
            if options.output:
                write(rows, options.output)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, milliseconds, median of {options.repeats}\n\n{markdown_table(rows, COLUMNS)}")


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """`low-rank-seconds.csv` and `low-rank-seconds.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "low-rank-seconds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "low-rank-seconds.md").write_text(markdown_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
