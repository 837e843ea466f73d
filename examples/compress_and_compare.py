"""Compress one model by several recipes and print one table: real bits and bytes, KL divergence, perplexity.

    python examples/compress_and_compare.py --model demo --output compared

The whole calibration is done once: recipes share the statistics of the first block. Run it again and nothing is
compressed twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import featherweight as fw

RECIPES: dict[str, dict[str, Any]] = {
    "rtn, 4 bits": {"method": "rtn", "bits": 4, "group_size": 64, "fit": "weighted"},
    "gptq, 4 bits": {"method": "gptq", "bits": 4, "group_size": 64},
    "gptq, 3 bits": {"method": "gptq", "bits": 3, "group_size": 64},
    "gptq, 3 bits, act-order": {"method": "gptq", "bits": 3, "group_size": 64, "order": "static"},
    "gptq, 2 bits": {"method": "gptq", "bits": 2, "group_size": 32},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="folder, hub name, .gguf file, demo, smollm2-135m")
    parser.add_argument("--output", type=Path, default=Path("compared"), help="folder for the compressed models")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window, to calibrate and to measure")
    parser.add_argument("--windows", type=int, default=8, help="held-out windows to measure on")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    options = parser.parse_args(arguments)

    print(f"{'recipe':26}{'bits':>8}{'file bytes':>14}{'KL':>10}{'±':>9}{'perplexity':>12}")
    dense = fw.evaluate(options.model, length=options.length, windows=options.windows)[0]
    print(f"{'dense':26}{'':>41}{dense.value:>12.2f}")
    for name in options.recipes:
        recipe = {
            "name": name,
            "steps": [RECIPES[name]],
            "calibration": {"samples": options.samples, "length": options.length, "batch_size": 8},
        }
        result = fw.compress(fw.plan(options.model, recipe), options.output / name.replace(", ", "-").replace(" ", ""))
        measured = fw.evaluate(result.folder, against=options.model, length=options.length, windows=options.windows)
        scores = {measurement.name: measurement for measurement in measured}
        kl, perplexity = scores["kl"], scores["perplexity"]
        print(
            f"{name:26}{result.totals.linear_bits:>8.3f}{result.totals.file_bytes:>14,}"
            f"{kl.value:>10.4f}{kl.stderr or 0:>9.4f}{perplexity.value:>12.2f}"
        )


if __name__ == "__main__":
    main()
