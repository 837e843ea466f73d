"""`fw methods`: what exists, with every setting and its default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(json: options.Json = False, offline: options.Offline = False) -> None:
    """List the methods, what they need, their settings and their source."""
    from featherweight.methods.registry import METHODS

    described: list[dict[str, Any]] = [
        {
            "name": name,
            "summary": method.summary,
            "needs": sorted(method.needs),
            "settings": {field.name: field.default for field in fields(method)},
            "source": method.source,
        }
        for name, method in METHODS.items()
    ]
    if json:
        print_json({"methods": described})
        return
    for entry in described:
        needs = f" (needs {', '.join(entry['needs'])})" if entry["needs"] else " (no data)"
        print(f"{entry['name']}{needs}: {entry['summary']}")
        print("    " + ", ".join(f"{name}={value}" for name, value in entry["settings"].items()))
        if entry["source"]:
            print(f"    {entry['source']}")
