"""Perplexity, KL divergence and real bits of recipes and their settings on one model.

    python benchmarks/quality.py MODEL --calibration TEXT --data TEXT [--data TEXT] --set spqr [--windows 24] [--json FILE]

Every variant is compressed into a temporary folder, scored from its reloaded files against the dense model on the same
windows, and printed as a Markdown row.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.planning.recipe import load_recipe

FLOAT32 = {"engine": {"compute": "float32"}}


def gptq(bits: int, group: int | None, **settings: object) -> list[dict]:
    return [{"method": "gptq", "bits": bits, "group_size": group, **settings}]


def integers() -> dict[str, list[dict]]:
    """Round-to-nearest and GPTQ with their options, by width."""
    variants = {
        "rtn": {"method": "rtn", "fit": "minmax"},
        "rtn mse": {"method": "rtn", "fit": "mse"},
        "gptq": {"method": "gptq", "fit": "minmax"},
        "gptq act-order": {"method": "gptq", "fit": "minmax", "order": "static"},
        "gptq mse": {"method": "gptq", "fit": "mse"},
        "gptq act-order mse": {"method": "gptq", "order": "static", "fit": "mse"},
        "gptq weighted": {"method": "gptq", "fit": "weighted"},
        "gptq act-order weighted": {"method": "gptq", "order": "static", "fit": "weighted"},
    }
    widths = {"4-bit g128": (4, 128), "3-bit g128": (3, 128), "3-bit per row": (3, None), "2-bit g32": (2, 32)}
    return {
        f"{width}: {name}": [{**step, "bits": bits, "group_size": group}]
        for width, (bits, group) in widths.items()
        for name, step in variants.items()
    }


def spqr() -> dict[str, list[dict]]:
    """SpQR beside GPTQ's curve of real bits; "public" settings are those that public implementations run with."""
    groups = {3: (None, 128, 64, 32), 4: (None, 128, 64, 32), 5: (None, 128)}
    curve = {
        f"gptq {bits}-bit {f'g{group}' if group else 'per row'}": gptq(bits, group)
        for bits, sizes in groups.items()
        for group in sizes
    }
    seed = {"method": "spqr", "group_size": 16, "scale_bits": 3, "zero_bits": 3, "outlier_threshold": 0.2, "damping": 1.0}
    public = {"fit": "minmax"}
    return {
        **curve,
        "gptq 3-bit g128 act-order": gptq(3, 128, order="static"),
        "gptq 4-bit g128 act-order": gptq(4, 128, order="static"),
        "rtn 4-bit g128 (public)": [{"method": "rtn", "bits": 4, "group_size": 128, **public}],
        "rtn 4-bit g128 symmetric (public)": [{"method": "rtn", "bits": 4, "group_size": 128, "symmetric": True, **public}],
        "rtn 4-bit g128 mse": [{"method": "rtn", "bits": 4, "group_size": 128, "fit": "mse"}],
        "gptq 4-bit g128 symmetric (public)": gptq(4, 128, symmetric=True, **public),
        "gptq 4-bit g128 symmetric": gptq(4, 128, symmetric=True),
        "rtn 3-bit g128 (public)": [{"method": "rtn", "bits": 3, "group_size": 128, **public}],
        "gptq 3-bit g128 symmetric (public)": gptq(3, 128, symmetric=True, **public),
        "gptq 3-bit g128 symmetric": gptq(3, 128, symmetric=True),
        "rtn 2-bit g128 (public)": [{"method": "rtn", "bits": 2, "group_size": 128, **public}],
        "gptq 2-bit g128 (public)": gptq(2, 128, **public),
        "gptq 2-bit g128": gptq(2, 128),
        "spqr-4bit": [{**seed, "bits": 4}],
        "spqr-3bit": [{**seed, "bits": 3}],
        "spqr 3-bit, threshold 0.275": [{**seed, "bits": 3, "outlier_threshold": 0.275}],
        "spqr-3bit, 8-bit outliers": [{**seed, "bits": 3, "outlier_bits": 8}],
        "spqr-pareto-3bit": load_recipe("spqr-pareto-3bit").as_dict()["steps"],
        "spqr-pareto-4bit": load_recipe("spqr-pareto-4bit").as_dict()["steps"],
        "spqr-pareto-3bit, g32": [{**load_recipe("spqr-pareto-3bit").as_dict()["steps"][0], "group_size": 32}],
        "spqr-pareto-4bit, g32": [{**load_recipe("spqr-pareto-4bit").as_dict()["steps"][0], "group_size": 32}],
        "spqr-pareto-3bit, threshold 0.2": [
            {**load_recipe("spqr-pareto-3bit").as_dict()["steps"][0], "outlier_threshold": 0.2, "max_outlier_share": 0.1}
        ],
    }


def sparse() -> dict[str, list[dict]]:
    """Pruning by every pattern, alone, with rounding in the walk, and before it."""
    rows = {}
    for pattern in ("50 %", "2:4", "4:8"):
        wide = {} if pattern == "50 %" else {"pattern": pattern}
        rows |= {
            f"magnitude {pattern}": [{"method": "magnitude", **wide}],
            f"sparsegpt {pattern}": [{"method": "sparsegpt", **wide}],
            f"sparsegpt {pattern}, refit": [{"method": "sparsegpt", "refit": 20, **wide}],
            f"alps {pattern}": [{"method": "alps", **wide}],
        }
    for pattern in ("50 %", "2:4"):
        wide = {} if pattern == "50 %" else {"pattern": pattern}
        rows |= {
            f"joint {pattern} + 4-bit": [{"method": "sparsegpt", "bits": 4, "group_size": 128, **wide}],
            f"sparsegpt {pattern}, then gptq": [{"method": "sparsegpt", **wide}, *gptq(4, 128)],
            f"sparsegpt {pattern}, then rtn": [
                {"method": "sparsegpt", **wide}, {"method": "rtn", "bits": 4, "group_size": 128}
            ],
            f"alps {pattern}, then gptq": [{"method": "alps", **wide}, *gptq(4, 128)],
        }  # fmt: skip
    return rows


def low_rank() -> dict[str, list[dict]]:
    """Everything up to 4 real bits beside low-rank terms."""
    caldera = {"method": "caldera", "rank_bits": 0.2}
    exact = {"left_bits": 16, "right_bits": 16}
    pareto = {**load_recipe("spqr-pareto-3bit").as_dict()["steps"][0], "bits": 2}
    term = {"method": "low-rank", "rank_bits": 0.2}
    quip = {"method": "quip"}
    others = ["*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.gate_proj", "*.up_proj"]
    return {
        "caldera-2bit": [caldera],
        "caldera 2-bit, 0.5 bits of 4-bit factors": [{**caldera, "rank_bits": 0.5}],
        "quip-2bit": [quip],
        "quip-2bit, then low-rank": [quip, term],
        "gptq-2bit-low-rank": [*gptq(2, 128, fit="weighted"), term],
        "caldera 2-bit, 0.2 bits of 16-bit factors": [{**caldera, **exact}],
        "spqr 2-bit g32": [{**pareto, "group_size": 32, "outlier_threshold": None}],
        "gptq 2-bit g64": gptq(2, 64, fit="weighted"),
        "gptq 2-bit per row": gptq(2, None, fit="weighted"),
        "gptq 2-bit g128": gptq(2, 128, fit="weighted"),
        "rtn 2-bit g128": [{"method": "rtn", "bits": 2, "group_size": 128}],
        "quip-2bit, 3 bits in down": [{**quip, "scope": others}, {**quip, "bits": 3, "scope": ["*.down_proj"]}],
        "caldera 2-bit, 0.5 bits of 16-bit factors": [{**caldera, "rank_bits": 0.5, **exact}],
        "spqr 2-bit g16, 0.5 % outliers": [{**pareto, "outlier_share": 0.005}],
        "gptq 2-bit g32": gptq(2, 32, fit="weighted"),
        "quip-2bit, then low-rank of 16-bit factors": [quip, {**term, **exact}],
        "quip-3bit": [{**quip, "bits": 3}],
        "caldera-3bit": [{**caldera, "bits": 3}],
        "gptq 3-bit g128": gptq(3, 128, fit="weighted"),
        "spqr-pareto-3bit": [{**pareto, "bits": 3}],
        "rtn 3-bit g128": [{"method": "rtn", "bits": 3, "group_size": 128}],
        "caldera 2-bit, 1 bit of 4-bit factors": [{**caldera, "rank_bits": 1.0}],
        "gptq 3-bit g128, then low-rank": [*gptq(3, 128, fit="weighted"), term],
        "quip-3bit, then low-rank": [{**quip, "bits": 3}, term],
        "lplr-4bit": load_recipe("lplr-4bit").as_dict()["steps"],
        "quip-4bit": [{**quip, "bits": 4}],
        "gptq 3-bit per row": gptq(3, None, fit="weighted"),
    }


SETS = {"integers": integers, "spqr": spqr, "sparse": sparse, "low-rank": low_rank}


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
    parser.add_argument("--set", choices=list(SETS), default="integers", dest="rows")
    parser.add_argument("--only", nargs="*", help="rows of the set by name; all if not given")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth row from the Ith, to share a set among processes")
    parser.add_argument("--claims", type=Path, help="folder in which processes that share a set claim its rows one by one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    calibration = {"source": options.calibration, "samples": options.samples, "length": options.calibration_length}
    first, step = map(int, options.part.split("/"))
    rows = {name: steps for name, steps in SETS[options.rows]().items() if not options.only or name in options.only}
    results = []
    print("| | bits | " + " | ".join(f"{Path(d).stem}: ppl | KL" for d in options.data) + " | seconds |", flush=True)
    print("|---" * (3 + 2 * len(options.data)) + "|", flush=True)
    for name, steps in list(rows.items())[first::step]:
        if options.claims and not claim(options.claims, name):
            continue
        recipe = {"name": name, "steps": steps, "calibration": calibration, **FLOAT32}
        try:
            results.append(measure(options, recipe))
        except FeatherweightError as problem:  # one row must not lose the others
            print(f"{name}: {problem}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))


def claim(folder: Path, name: str) -> bool:
    """Whether this process is the first to claim the row."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / re.sub(r"\W+", "-", name)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def measure(options: argparse.Namespace, recipe: dict) -> dict:
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
    print(f"| {recipe['name']} | {result.totals.linear_bits:.3f} | {cells} | {seconds:.0f} |", flush=True)
    return {"name": recipe["name"], "bits": result.totals.linear_bits, "seconds": seconds, "scores": scores}


if __name__ == "__main__":
    main()
