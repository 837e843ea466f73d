"""`fw export`: the same codes and scales as another program reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    output: options.Output,
    format: Annotated[
        str, typer.Option("--format", "-f", help="compressed-tensors, vllm, gptq, gguf or dense.", show_default=False)
    ],
    folder: Annotated[Path, typer.Option("--output", "-o", help="New folder for the exported model.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Write OUTPUT in another format: codes and scales bit for bit, or the reasons why it cannot be, before anything is written."""
    from featherweight import api

    done = api.export(output, format, folder)
    if json:
        print_json({**vars(done), "folder": str(done.folder)})
        return
    print(f"{done.folder}: {done.format}, {len(done.files)} file{'s' if len(done.files) > 1 else ''}, {done.bytes:,} bytes")
    print(f"read by {done.readers}")
    for note in done.notes:
        print(f"note: {note}")
