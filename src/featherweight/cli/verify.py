"""`fw verify`: reload, recompute, compare, check hashes."""

from __future__ import annotations

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    output: options.Output,
    device: options.Device = None,
    stream: options.Stream = False,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Check every file's hash and that the reloaded model repeats the logits recorded when it was made."""
    from featherweight import api

    result = api.verify(output, device=device, stream=stream)
    if json:
        print_json(result)
        return
    proof = result["proof"]
    print(f"{result['files']} files, {result['bytes']:,} bytes, hashes right")
    print(f"logits repeat within {proof['largest_difference']:.2e} (bound {proof['bound']:.0e}, {proof['dtype']})")
