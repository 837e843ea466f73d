"""`fw report`: one page about one compressed model."""

from __future__ import annotations

from pathlib import Path

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(output: options.Output, offline: options.Offline = False, json: options.Json = False) -> None:
    """Write report.html into OUTPUT: error, bits, sparsity and damping by layer and linear, time, totals, quality."""
    from featherweight.engine.save import read_ledger
    from featherweight.reports.page import write_report

    read_ledger(Path(output))
    page = write_report(Path(output))
    if json:
        print_json({"page": str(page)})
    else:
        print(page)
