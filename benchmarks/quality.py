"""Perplexity, KL divergence and real bits of recipes and their settings on one model.

    python benchmarks/quality.py MODEL --calibration TEXT --data TEXT [--data TEXT] [--length 1024 --windows 24] [--json FILE]

Every variant is compressed into a temporary folder, scored from its reloaded files against the dense model on the same
windows, and printed as a Markdown row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import featherweight as fw

WIDTHS = {
    "4-bit g128": {"bits": 4, "group_size": 128},
    "3-bit g128": {"bits": 3, "group_size": 128},
    "3-bit per row": {"bits": 3, "group_size": None},
    "2-bit g32": {"bits": 2, "group_size": 32},
}
FLOAT32 = {"engine": {"compute": "float32"}}
VARIANTS = {
    "rtn": {"method": "rtn", "fit": "minmax"},
    "rtn mse": {"method": "rtn", "fit": "mse"},
    "gptq": {"method": "gptq", "fit": "minmax"},
    "gptq act-order": {"method": "gptq", "fit": "minmax", "order": "static"},
    "gptq mse": {"method": "gptq", "fit": "mse"},
    "gptq act-order mse": {"method": "gptq", "order": "static", "fit": "mse"},
    "gptq weighted": {"method": "gptq", "fit": "weighted"},
    "gptq act-order weighted": {"method": "gptq", "order": "static", "fit": "weighted"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="sample")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--calibration-length", type=int, default=512)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--device", default=None)
    parser.add_argument("--widths", nargs="*", default=list(WIDTHS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    calibration = {"source": options.calibration, "samples": options.samples, "length": options.calibration_length}
    results = []
    print(
        "| width | variant | bits | " + " | ".join(f"{Path(d).stem}: ppl | KL" for d in options.data) + " | seconds |",
        flush=True,
    )
    print("|---" * (4 + 2 * len(options.data)) + "|", flush=True)
    for width in options.widths:
        for variant in options.variants:
            recipe = {"name": variant, "steps": [{**VARIANTS[variant], **WIDTHS[width]}], "calibration": calibration, **FLOAT32}
            results.append(measure(options, recipe, width, variant))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def measure(options: argparse.Namespace, recipe: dict, width: str, variant: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = fw.compress(fw.plan(options.model, recipe), Path(folder) / "out", device=options.device)
        seconds = time.perf_counter() - started
        scores = {}
        for data in options.data:
            measured = fw.evaluate(
                result.folder,
                data,
                against=options.model,
                length=options.length,
                windows=options.windows,
                device=options.device,
            )
            scores[data] = {measurement.name: measurement.as_dict() for measurement in measured}
    cells = " | ".join(
        f"{s['perplexity']['value']:.2f} | {s['kl']['value']:.4f} ± {s['kl']['stderr']:.4f}" for s in scores.values()
    )
    print(f"| {width} | {variant} | {result.totals.linear_bits:.3f} | {cells} | {seconds:.0f} |", flush=True)
    return {"width": width, "variant": variant, "bits": result.totals.linear_bits, "seconds": seconds, "scores": scores}


if __name__ == "__main__":
    main()
