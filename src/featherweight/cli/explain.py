"""`fw explain`: which kernel runs for each weight, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    output: options.Output, device: options.Device = None, offline: options.Offline = False, json: options.Json = False
) -> None:
    """Say for every kind of packed weight in OUTPUT which kernel multiplies it on DEVICE."""
    from featherweight.engine.compress import pick_device
    from featherweight.engine.save import read_ledger

    read_ledger(Path(output))
    place = pick_device(device)
    weights, step = kernels_of(output, place), step_of(output)
    if json:
        print_json({"device": str(place), "weights": weights, "decode_step": step})
        return
    for weight in weights:
        print(f"{weight['storage']}: {len(weight['modules'])} weights, {weight['modules'][0]} ...")
        print_kernels(weight["kernels"])
    print(f"decoding on a GPU: the {step['path']} step, {step['reason']}")


def print_kernels(kernels: Iterable[Mapping[str, Any]]) -> None:
    """The kernel that runs, after those that were offered the work before it and why they do not."""
    for entry in kernels:
        print(f"    {'runs' if entry['runs'] else 'not '} {entry['kernel']}: {entry['reason']}")
        if entry["runs"]:
            return


def kernels_of(output: str, device: Any) -> list[dict[str, Any]]:
    """For every storage and shape of an output: its modules, and which kernels run for it or why not."""
    from featherweight.engine.doctor import explained
    from featherweight.integrations.load import read_modules
    from featherweight.packed.base import empty
    from featherweight.packed.lower import explain
    from featherweight.planning.rows import describe_storage

    alike: dict[str, dict[str, Any]] = {}
    for name, description in read_modules(output).items():
        key = f"{describe_storage(description)} {description['shape'][0]}x{description['shape'][1]}"
        if key not in alike:
            kernels = explained(explain(empty(description), device))
            alike[key] = {"storage": key, "modules": [], "kernels": kernels}
        alike[key]["modules"].append(name)
    return list(alike.values())


def step_of(output: str) -> dict[str, str]:
    """Whose decode step a GPU replays for this model, "fused" (ours) or "transformers", and why."""
    from transformers import AutoConfig

    from featherweight.decoding import why_not
    from featherweight.decoding.coded_cache import why_not_coded
    from featherweight.integrations.cache_choice import choose_cache
    from featherweight.kv_cache.shapes import cache_shapes
    from featherweight.models.skeleton import build_skeleton

    config = AutoConfig.from_pretrained(output)
    config.quantization_config = None
    reason = why_not(build_skeleton(config))
    settings = choose_cache(Path(output), None)
    if not reason and settings is not None:
        shapes = cache_shapes(config)
        reason = why_not_coded(settings, len(shapes), shapes[0].key_dim)
    if reason:
        return {"path": "transformers", "reason": f"since {reason}"}
    return {"path": "fused", "reason": "one CUDA graph a token"}
