"""Milliseconds of compressing one linear by every method of second order, by part, with the objective in float64.

    python benchmarks/solver.py                                  # CPU, one small shape
    python benchmarks/solver.py --device cuda --output results   # the shapes of Llama layers; writes solver.csv and solver.md
    python benchmarks/solver.py --device cuda --shapes 4096x4096 --cases spqr quip --profile results

Per shape and method: `total` is the whole method (factor, walk, packing, what the ledger asks), `factor` and `walk` the parts inside it,
each with the device waited for, so that the parts take a little longer than they do in the total. `solve` is factor and walk alone,
back to back. Medians after one warm-up. `objective` is tr(E H Eᵀ) / tr(W H Wᵀ) of what was stored, in float64; `against float64` is
its ratio to that of the textbook solver run in float64, which may decide otherwise next to a tie (not for QuIP#, nor other orders of
GPTQ). `--profile` writes what the device and the host did meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sweep import make_inputs
from torch import Tensor

from featherweight.grids.exact import Exact
from featherweight.methods.base import Method, Problem
from featherweight.methods.gptq import GPTQ
from featherweight.methods.quip import QuIP
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.packed.dense import Dense
from featherweight.solvers import vectors
from featherweight.solvers.damping import factorise
from featherweight.solvers.outliers import outlier_scale
from featherweight.solvers.reference import Drops, Keeps, textbook
from featherweight.solvers.result import Solved
from featherweight.solvers.sweep import sweep
from featherweight.statistics.inputs import InputStatistics

CASES: dict[str, Method] = {
    "gptq 4-bit g128 minmax": GPTQ(fit="minmax"),
    "gptq 4-bit g128 weighted": GPTQ(),
    "gptq 4-bit g128 weighted, static order": GPTQ(order="static"),
    "gptq 2-bit g32 weighted": GPTQ(bits=2, group_size=32),
    "sparsegpt 50 %": SparseGPT(),
    "sparsegpt 2:4": SparseGPT(pattern="2:4"),
    "joint 50 % + 4-bit minmax": SparseGPT(bits=4, fit="minmax"),
    "joint 2:4 + 4-bit weighted": SparseGPT(pattern="2:4", bits=4),
    "spqr 3-bit g16": SpQR(max_outlier_share=0.2),
    "spqr weighted 3-bit g16": SpQR(fit="weighted", outlier_bits=8, max_outlier_share=0.2, second_group_size=64),
    "quip 2-bit": QuIP(2),
    "quip 4-bit, 2 passes": QuIP(4, passes=2),
}
SHAPES = {"cpu": ["256x512"], "cuda": ["4096x4096", "14336x4096", "4096x14336"]}
COLUMNS = ("shape", "case", "total", "solve", "factor", "walk", "descent", "spread", "peak_mb", "objective", "against_float64")


def waited(device: str) -> float:
    """Seconds on the clock, once the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def parts_timed(device: str) -> Iterator[dict[str, float]]:
    """Milliseconds spent inside factorisations, walks and descents while this is open."""
    from featherweight.methods import gptq, quip, sparsegpt, spqr

    spent = {"factorise": 0.0, "sweep": 0.0, "descend": 0.0}
    rooms = (gptq, quip, sparsegpt, spqr, vectors)
    before = [(room, name, getattr(room, name)) for room in rooms for name in spent if hasattr(room, name)]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = waited(device)
            result = function(*arguments, **options)
            spent[name] += (waited(device) - started) * 1e3
            return result

        return run

    for room, name, function in before:
        setattr(room, name, timed(name, function))
    try:
        yield spent
    finally:
        for room, name, function in before:
            setattr(room, name, function)


def median(work: Callable[[], object], device: str, repeats: int) -> tuple[float, float]:
    """Median milliseconds after one warm-up, and the distance from the fastest to the slowest run."""
    durations = []
    for run in range(repeats + 1):
        started = waited(device)
        work()
        if run:
            durations.append((waited(device) - started) * 1e3)
    return statistics.median(durations), max(durations) - min(durations)


def objective(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    """tr(E H Eᵀ) / tr(W H Wᵀ) in float64."""
    hessian = hessian.double()

    def energy(error: Tensor) -> float:
        return float(sum(((part.double() @ hessian) * part.double()).sum() for part in error.split(2048)))

    return energy(weight - values) / energy(weight)


def solver_of(method: Method, problem: Problem) -> Callable[[], object] | None:
    """Factor and walk alone, of GPTQ and SparseGPT."""
    weight, hessian = problem.weights["linear"], problem.hessian("", "")[0]
    if isinstance(method, GPTQ) and method.order == "none":
        grid = method.grid_over(weight)
        return lambda: sweep(weight, factorise(hessian, method.damping), grid, method.group_size)
    if not isinstance(method, SparseGPT):
        return None
    rounding = method._rounding()
    grid = Exact(problem.dtype) if rounding is None else rounding.grid_over(weight)

    def solve() -> object:
        factor = factorise(hessian, method.damping)
        decision = method._decision(problem, ["linear"], factor)
        return sweep(weight, factor, grid, None if rounding is None else method.group_size, decision=decision)

    return solve


def measure(
    shape: str, case: str, problem: Problem, device: str, repeats: int, exact: dict[str, float] | None
) -> dict[str, Any]:
    """One row of the table."""
    method = CASES[case]
    weight, hessian = problem.weights["linear"], problem.hessian("", "")[0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    total, spread = median(lambda: method.compress(problem), device, repeats)
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if device == "cuda" else 0.0
    with parts_timed(device) as spent:
        done = method.compress(problem)["linear"].weight
    row = {
        "shape": shape, "case": case, "total": total, "factor": spent["factorise"], "walk": spent["sweep"],
        "descent": spent["descend"], "spread": spread, "peak_mb": peak,
        "objective": objective(weight, done.dequantize().float(), hessian),
    }  # fmt: skip
    solve = solver_of(method, problem)
    if solve is not None:
        row["solve"] = median(solve, device, repeats)[0]
    if exact is None or isinstance(method, QuIP) or (isinstance(method, GPTQ) and method.order != "none"):
        return row
    if case not in exact:
        exact[case] = objective(weight, solved_exactly(method, problem).decoded, hessian)
    row["against_float64"] = row["objective"] / exact[case]
    return row


def solved_exactly(method: Method, problem: Problem) -> Solved:
    """By the textbook, in float64."""
    weight, hessian = problem.weights["linear"], problem.hessian("", "")[0]
    if isinstance(method, SpQR):
        order = method._order(weight, hessian)
        threshold = method._threshold() * outlier_scale(weight, factorise(hessian, method.damping, order=order))
        keeps, size = Keeps(threshold, method.outlier_bits == 8), method.group_size
        return textbook(
            weight, hessian, method.grid(), size, damping=method.damping, order=order, dtype=torch.float64, keeps=keeps
        )
    assert isinstance(method, GPTQ | SparseGPT)
    rounding = method._rounding() if isinstance(method, SparseGPT) else method
    grid = Exact(problem.dtype) if rounding is None else rounding.grid_over(weight)
    drops = None
    if isinstance(method, SparseGPT):
        pattern = method._pattern()
        drops = Drops(pattern.of or method.block_size, pattern.dropped, rounding is not None and method.fit_on == "kept")
    size = None if rounding is None else method.group_size
    return textbook(weight, hessian, grid, size, damping=method.damping, dtype=torch.float64, drops=drops)


def profile(case: str, problem: Problem, folder: Path) -> None:
    """What one warm run does on host and device, into a text file."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=kinds) as record:
        CASES[case].compress(problem)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    folder.mkdir(parents=True, exist_ok=True)
    averages = record.key_averages()
    orders = ["self_cuda_time_total", "self_cpu_time_total"] if torch.cuda.is_available() else ["self_cpu_time_total"]
    tables = [averages.table(sort_by=order, row_limit=25, max_name_column_width=60) for order in orders]
    (folder / f"profile-{case.replace(' ', '-').replace('%', '').replace(':', '-')}.txt").write_text("\n\n".join(tables))


def cell(value: object) -> str:
    """A number as the table shows it."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.5f}" if abs(value) < 2 else f"{value:.2f}"


def markdown_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """All rows."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """`solver.csv` and `solver.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "solver.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "solver.md").write_text(markdown_table(rows, COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="*", help="rows x inputs, as in 4096x14336")
    parser.add_argument("--cases", nargs="*", help="parts of names; all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-float64", action="store_true", help="leave the textbook solver in float64 out")
    parser.add_argument("--profile", type=Path, help="folder for tables of the profiler, of every case on the first shape")
    parser.add_argument("--output", type=Path, help="folder for solver.csv and solver.md")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    shapes = options.shapes or SHAPES[options.device]
    for shape in shapes:
        outputs, inputs = map(int, shape.split("x"))
        weight, hessian = make_inputs(outputs, inputs, options.device)
        sums = InputStatistics(1, hessian.diagonal().clone(), hessian)
        problem = Problem({"linear": weight}, {"linear": Dense(weight.to(torch.bfloat16))}, sums, torch.bfloat16)
        problem = Problem({"linear": weight.bfloat16().float()}, problem.current, sums, torch.bfloat16)
        exact: dict[str, float] | None = None if options.no_float64 else {}
        for case in CASES:
            if options.cases and not any(part in case for part in options.cases):
                continue
            try:
                rows.append(measure(shape, case, problem, options.device, options.repeats, exact))
                if options.profile and shape == shapes[0]:
                    profile(case, problem, options.profile)
            except Exception as problem_met:  # one case must not lose the others
                print(f"{shape} {case}: {type(problem_met).__name__}: {problem_met}", flush=True)
                continue
            print(markdown_table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
            if options.output:
                write(rows, options.output)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, milliseconds, median of {options.repeats}\n\n{markdown_table(rows, COLUMNS)}")


if __name__ == "__main__":
    main()
