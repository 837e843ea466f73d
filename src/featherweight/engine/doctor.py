"""What a machine has, which kernel runs for every storage and why not the others, and whether each gives the right product."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from featherweight.engine.forms import Chain, all_forms, pack_by
from featherweight.kernels import registry
from featherweight.kernels.folder import kernel_folder
from featherweight.kv_cache.presets import PRESETS, preset
from featherweight.methods.gptq import GPTQ
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.methods.spqr import SpQR
from featherweight.packed.base import PackedWeight
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import explain
from featherweight.planning.rows import describe_storage
from featherweight.version import __version__

SHAPE = (256, 512)
#: Largest relative error of a product that rounding alone may make.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
FORMS: dict[str, Chain] = {
    **{f"{bits}-bit": (RTN(bits=bits, group_size=128),) for bits in (8, 4, 3, 2)},
    "4-bit by gptq": (GPTQ(bits=4, group_size=64),),
    "2:4 masked": (Magnitude(pattern="2:4"),),
    "spqr": (SpQR(outlier_threshold=0.3, max_outlier_share=0.2),),
}
#: What ops beside products of weights and attention over a coded cache are asked about: each reads its own part.
ASKED = {
    "columns": 128, "rows": 1, "group_size": 128, "tokens": 32, "inputs": 4096, "outputs": 4096, "head_dim": 128, "dtype": "bfloat16",
}  # fmt: skip
PRODUCTS = ("dequantize_matmul", "integer_matmul", "integer_values")


def explained(offered: Iterable[tuple[str, bool, str]]) -> list[dict[str, Any]]:
    """The answers of `explain` by name: `kernel`, `runs`, `reason`."""
    return [{"kernel": kernel, "runs": runs, "reason": reason} for kernel, runs, reason in offered]


def environment() -> dict[str, str]:
    """Versions, compilers, processor and GPUs, as far as they can be found, by name."""
    from featherweight.kernels.cpu import compiler as c
    from featherweight.kernels.cpu import integer
    from featherweight.kernels.cuda import compiler as cuda

    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    found = {
        "featherweight": __version__,
        "python": f"{sys.version.split()[0]}, {platform.platform()}",
        **{name: _version(name) for name in ("torch", "transformers", "triton")},
        "CUDA of torch": str(torch.version.cuda),
        "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "NVRTC": cuda.missing() or "found",
        "C compiler": "none" if compiler is None else f"{compiler}, {_first_line([compiler, '--version'])}",
        "C kernels": c.missing("integer") or integer.level(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, torch computes with {torch.get_num_threads()} threads",
        "kernels kept in": str(kernel_folder()),
    }
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{card.name}, compute capability {card.major}.{card.minor}, {card.total_memory / 2**30:.0f} GiB"
        )
    return found


def examine(device: torch.device) -> list[dict[str, Any]]:
    """Every storage multiplied on `device`, in the dtype that is usual there.

    Returns:
        For each `form`, `storage`, `kernels` (as `explained`), the relative `error` of the product, `seconds` of the first one
        (compilers included), `problem` (empty if it is right) and `broken`: whether what should run did not, or wrongly.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return [_examine(name, chain, device, dtype) for name, chain in all_forms(FORMS).items()]


def other_ops(device: torch.device) -> list[dict[str, Any]]:
    """`ops`, what was `asked`, and `kernels` of the ops beside products of weights, alike ones together; nothing is run."""
    questions = [
        (op, "", ASKED) for op, kernels in registry.OPS.items() if len(kernels) > 1 and op not in (*PRODUCTS, "cache_attention")
    ]
    shared = {"head_dim": 128, "queries": 1, "dtype": "bfloat16"}
    for name in PRESETS:
        settings = preset(name, 128).as_dict()
        told = {"keys": settings["keys"], "values": settings["values"], "exact_first": settings.get("exact_first", 0)}
        questions.append(("cache_attention", name, {**shared, **told}))
    alike: dict[str, dict[str, Any]] = {}
    for op, asked, told in questions:
        kernels = explained(registry.explain(op, told, device))
        found = alike.setdefault(repr((asked and op, kernels)), {"ops": [], "asked": [], "kernels": kernels})
        found["ops"] = list(dict.fromkeys([*found["ops"], op]))
        found["asked"] += [asked] if asked else []
    return list(alike.values())


def _examine(name: str, chain: Chain, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    row: dict[str, Any] = {
        "form": name,
        "storage": "",
        "kernels": [],
        "error": None,
        "seconds": None,
        "problem": "",
        "broken": True,
    }
    try:
        weight = pack_by(chain, torch.randn(SHAPE, generator=generator).to(device, dtype))
        row |= {"storage": describe_storage(weight.description()), "kernels": explained(explain(weight, device))}
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            x = torch.randn(2, SHAPE[1], generator=generator).to(device, dtype)
            row["error"] = _error(weight, x)
        row["seconds"] = time.perf_counter() - started
    except Exception as problem:  # whatever it is, the others are still examined
        return {**row, "problem": f"{type(problem).__name__}: {problem}"}
    if refused := [str(each.message) for each in told if "kernel is not used" in str(each.message)]:
        return {**row, "problem": refused[0]}
    if not row["error"] < BOUNDS[dtype]:
        return {
            **row,
            "problem": f"the product is wrong: relative error {row['error']:.1e}, expected below {BOUNDS[dtype]:.0e}",
        }
    return {**row, "broken": False}


@torch.no_grad()
def _error(weight: PackedWeight, x: torch.Tensor) -> float:
    product = PackedLinear(weight, dtype=x.dtype)(x).double().cpu()
    values = weight.to("cpu")
    x = x.cpu()
    expected = x.double() @ values.dequantize().double().T if values.is_linear else values.matmul(x.float()).double()
    return float((product - expected).norm() / expected.norm())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return next(iter(done.stdout.splitlines()), "none")


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
