"""`fw push`: an output on the hub, after it has proven itself."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    output: options.Output,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private if it is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and list the files, send nothing.")] = False,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Verify OUTPUT, then upload it with its model card; nothing else ever leaves this machine."""
    from featherweight import api

    done = api.push(output, repository, private=private, dry_run=dry_run, device=device)
    if json:
        print_json(vars(done))
        return
    for name in done.files:
        print(f"    {name}")
    print(f"{len(done.files)} files, {done.bytes:,} bytes, {done.url or 'not sent'}")
