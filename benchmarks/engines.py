"""What other programs make of our exports: models compressed in every form a format holds, exported, and our own answers to compare with.

    python benchmarks/engines.py make FOLDER [--models demo ...] [--forms ...]
    ENVIRONMENT/bin/python benchmarks/engines_read.py transformers FOLDER     # in the environment of each engine
    python benchmarks/engines.py tell FOLDER --output benchmarks/engines

`make` writes FOLDER/MODEL/FORM/: `ours`, one folder for each export, `float32` (a dense checkpoint of exactly the values that ours
stands for, and `float32.gguf` where GGUF is) and `reference.npz`: the first 256 tokens of the held-out text, our float32 logits behind
each, and 64 greedy tokens behind the first 32. `engines_read.py` adds one row for each export that its engine reads.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy
import torch

import featherweight as fw
from featherweight import api
from featherweight.errors import FeatherweightError
from featherweight.export.checkpoint import Checkpoint
from featherweight.export.gguf import GGUF
from featherweight.packed.base import PackedWeight

TOKENS, PROMPT, GREEDY = 256, 32, 64
MODELS = {"demo": "demo", "opt-5m": "tests/assets/opt-5m"}
NAMES = ("compressed-tensors", "gptq", "gguf")
FORMATS: dict[str, tuple[str, ...]] = {"W8A8": NAMES[:1], "mixed": ("compressed-tensors", "gguf")}


def integer(**changes: Any) -> dict[str, Any]:
    """A step of GPTQ, symmetric 4 bits in groups of 32 but for these."""
    return {"method": "gptq", "bits": 4, "group_size": 32, "symmetric": True, **changes}


FORMS: dict[str, list[dict[str, Any]]] = {
    "4 bits": [integer()],
    "4 bits, groups of 128": [integer(group_size=128)],
    "4 bits, static order": [integer(group_size=128, order="static")],
    "4 bits, whole rows": [integer(group_size=None)],
    "4 bits, zero points": [integer(symmetric=False)],
    "4 bits, 2:4": [{"method": "sparsegpt", "pattern": "2:4"}, integer()],
    "8 bits": [integer(bits=8)],
    "8 bits, whole rows": [integer(bits=8, group_size=None)],
    "8 bits, zero points": [integer(bits=8, symmetric=False)],
    "2 bits": [integer(bits=2)],
    "2 bits, zero points": [integer(bits=2, symmetric=False)],
    "mixed": [integer(scope="*.mlp.*"), integer(bits=8, scope="*_attn.*")],
    "W8A8": [integer(bits=8, group_size=None), {"method": "round-input"}],
}


class Decoded(GGUF):
    """The same file with every value in float32."""

    def _named(self, source: Checkpoint, gguf: Any) -> Any:
        for name, values, kind in super()._named(source, gguf):
            yield name, gguf.quants.dequantize(values, kind), gguf.GGMLQuantizationType.F32


def make(model: str, form: str, folder: Path, method: str = "gptq") -> None:
    """Compress, export, and store our answers."""
    from transformers import AutoTokenizer

    steps = [{**step, "method": method} if step["method"] == "gptq" else step for step in FORMS[form]]
    changes = {"calibration.samples": 8, "calibration.length": 128, "calibration.batch_size": 4}
    plan = fw.plan(MODELS.get(model, model), {"name": "engines", "steps": steps}, changes=changes)
    ours = Path(fw.compress(plan, folder / "ours").folder)
    for name in FORMATS.get(form, NAMES):
        try:
            print(model, form, "|", *api.export(ours, name, folder / name).notes)
        except FeatherweightError as problem:
            print(f"{model} | {form} | {name} | {' '.join(str(problem).split())}")
    if (folder / "gguf" / "model.gguf").is_file():
        decode_gguf(ours, folder)
    loaded = api.load(ours, dtype=torch.float32)
    text = (Path(fw.__file__).parent / "assets" / "heldout.txt").read_text()[: 8 * TOKENS]
    ids = torch.tensor(AutoTokenizer.from_pretrained(ours)(text).input_ids[:TOKENS])[None]
    with torch.no_grad():
        greedy = loaded.generate(ids[:, :PROMPT], max_new_tokens=GREEDY, do_sample=False, eos_token_id=-1)
        logits = loaded(ids, use_cache=False).logits[0]
        gaps = loaded(greedy, use_cache=False).logits[0, PROMPT - 1 : -1].topk(2).values
    numpy.savez(
        folder / "reference.npz", text=ids[0].numpy(), logits=logits.numpy(), greedy=greedy[0].numpy(),
        gaps=(gaps[:, 0] - gaps[:, 1]).numpy(),
    )  # fmt: skip
    write_values(ours, folder / "float32")


def decode_gguf(ours: Path, folder: Path) -> None:
    """`float32.gguf`: the same settings and tokenizer, values in float32."""
    (folder / "decoded").mkdir()
    Decoded().write(Checkpoint.open(ours), folder / "decoded")
    (folder / "decoded" / "model.gguf").replace(folder / "float32.gguf")
    (folder / "decoded").rmdir()


def write_values(ours: Path, output: Path) -> None:
    """A dense float32 checkpoint of the values that every packed weight stands for."""
    from transformers import AutoModelForCausalLM

    source = Checkpoint.open(ours)
    config = source.skeleton.config
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = {
        f"{name}.weight" if isinstance(weight, PackedWeight) else name: weight.dequantize() if isinstance(weight, PackedWeight) else weight
        for name, weight in source.weights()
    }  # fmt: skip
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert not unexpected and all(name == "lm_head.weight" for name in missing), (missing, unexpected)
    model.tie_weights()
    model.save_pretrained(output)


def tell(folder: Path, output: Path) -> str:
    """All rows of all engines in one file, the last reading of each, and the table."""
    found = {}
    for path in sorted(folder.glob("*.csv"), key=lambda path: path.stat().st_mtime):
        for row in csv.DictReader(path.open()):
            found[tuple(row[name] for name in ("engine", "export", "dtype", "model", "form"))] = row
    rows = [found[key] for key in sorted(found)]
    output.mkdir(parents=True, exist_ok=True)
    with (output / "engines.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    (output / "engines.md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "tell"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="`demo`, `opt-5m`, any folder or name")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--method", default="gptq", choices=["gptq", "rtn"], help="`rtn` where seconds count more than quality")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/engines"))
    options = parser.parse_args()
    if options.what == "tell":
        print(tell(options.folder, options.output))
        return
    for model in options.models:
        for form in options.forms:
            folder = options.folder / Path(model).name / form
            if (folder / "reference.npz").is_file():
                continue
            try:
                make(model, form, folder, options.method)
            except FeatherweightError as problem:
                print(f"{model} | {form} | {' '.join(str(problem).split())}")


if __name__ == "__main__":
    main()
