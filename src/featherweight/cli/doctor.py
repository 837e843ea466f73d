"""`fw doctor`: which kernels this machine gets, why not the others, and whether they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from featherweight.cli import options
from featherweight.cli.explain import print_kernels
from featherweight.cli.output import print_json


def run(device: options.Device = None, offline: options.Offline = False, json: options.Json = False) -> None:
    """Examine this installation: versions, compilers, and the kernel of every storage, each compiled, run and checked.

    Exits with 1 only where something is broken: a kernel that should run here does not, or gives a wrong product.
    """
    from featherweight.engine.compress import pick_device
    from featherweight.engine.doctor import environment, examine, other_ops

    place = pick_device(device)
    found, products, ops = environment(), examine(place), other_ops(place)
    broken = [row["form"] for row in products if row["broken"]]
    if json:
        print_json({"device": str(place), "environment": found, "products": products, "ops": ops, "broken": broken})
    else:
        _print(str(place), found, products, ops)
        print(f"broken: {', '.join(broken)}" if broken else "nothing is broken")
    if broken:
        raise typer.Exit(1)


def _print(
    device: str, found: Mapping[str, str], products: Sequence[Mapping[str, Any]], ops: Sequence[Mapping[str, Any]]
) -> None:
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    print(f"\nproducts on {device}, made and multiplied here")
    for row in products:
        checked = f"relative error {row['error']:.1e}, the first in {row['seconds']:.2f} s" if row["error"] is not None else ""
        print(f"{row['form']}: {row['storage']}; {row['problem'] or checked}")
        print_kernels(row["kernels"])
    print(f"\nother ops on {device}, not run")
    for row in ops:
        print(", ".join(row["ops"]) + (f" with {', '.join(row['asked'])}" if row["asked"] else ""))
        print_kernels(row["kernels"])
