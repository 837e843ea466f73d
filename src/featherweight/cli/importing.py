"""`fw import`: a GPTQ, AWQ or compressed-tensors checkpoint as an output of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the quantized checkpoint.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Read CHECKPOINT (GPTQ, AWQ, compressed-tensors) into OUTPUT, codes and scales bit for bit, and prove that it reloads."""
    from featherweight import api
    from featherweight.reports.tables import print_result

    result = api.import_checkpoint(checkpoint, output)
    if json:
        print_json(result.as_dict())
    else:
        print_result(result)
