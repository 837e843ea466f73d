"""`fw explain`: which kernel runs for each weight, and why not the others."""

from __future__ import annotations

from pathlib import Path

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    output: options.Output, device: options.Device = None, offline: options.Offline = False, json: options.Json = False
) -> None:
    """Say for every kind of packed weight in OUTPUT which kernel multiplies it on DEVICE."""
    from featherweight.engine.compress import pick_device
    from featherweight.engine.save import read_ledger
    from featherweight.integrations.load import read_modules
    from featherweight.packed.base import empty
    from featherweight.packed.lower import explain
    from featherweight.planning.rows import describe_storage

    read_ledger(Path(output))
    place = pick_device(device)
    alike: dict[str, list[str]] = {}
    described = {}
    for name, description in read_modules(output).items():
        key = f"{describe_storage(description)} {description['shape'][0]}x{description['shape'][1]}"
        alike.setdefault(key, []).append(name)
        described[key] = [
            {"kernel": kernel, "runs": runs, "reason": reason} for kernel, runs, reason in explain(empty(description), place)
        ]
    if json:
        weights = [{"storage": key, "modules": alike[key], "kernels": described[key]} for key in alike]
        print_json({"device": str(place), "weights": weights})
        return
    for key, names in alike.items():
        print(f"{key}: {len(names)} weights, {names[0]} ...")
        for entry in described[key]:
            print(f"    {'runs' if entry['runs'] else 'not '} {entry['kernel']}: {entry['reason']}")
