"""A checkpoint that others quantized as an output of ours: the run of one step, `imported`, on its own values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from featherweight.engine.compress import Result, compress
from featherweight.engine.progress import Event, silent
from featherweight.engine.save import copy_tokenizer
from featherweight.errors import FeatherweightError
from featherweight.export.foreign import Foreign
from featherweight.models.shards import SINGLE, model_shards
from featherweight.models.source import ModelSource
from featherweight.packed.files import write, write_text
from featherweight.planning.plan import make_plan
from featherweight.planning.recipe import load_recipe


def import_checkpoint(folder: str | Path, output: str | Path, *, report: Callable[[Event], None] = silent) -> Result:
    """Write the quantized checkpoint in `folder` as an output of ours, codes and scales bit for bit.

    Its decoded values are kept beside the output while this runs (`OUTPUT.dense`).

    Raises:
        FeatherweightError: a checkpoint that cannot be imported, or an output folder in use.
    """
    folder, output = Path(folder), Path(output)
    foreign = Foreign.open(folder)
    if output.exists() and any(output.iterdir()):
        raise FeatherweightError("the folder is in use", found=str(output), expected="a new or empty folder")
    dense = output.with_name(output.name + ".dense")
    shutil.rmtree(dense, ignore_errors=True)
    dense.mkdir(parents=True)
    try:
        _write_dense(foreign, dense)
        step = {"method": "imported", "checkpoint": str(folder.resolve()), "scope": list(foreign.modules)}
        recipe = load_recipe({"name": "imported", "steps": [step]})
        return compress(make_plan(ModelSource(str(folder), dense), recipe), output, report=report)
    finally:
        shutil.rmtree(dense, ignore_errors=True)


def _write_dense(foreign: Foreign, folder: Path) -> None:
    """The decoded values of the quantized linears, everything else as it is; a file for each of the checkpoint's."""
    owned, placed = foreign.owned(), {}
    for shard in model_shards(foreign.folder):
        held = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name not in owned:
                    held[name] = file.get_tensor(name)
        for module in foreign.modules:
            if foreign.first_file(module) == shard:
                held[f"{module}.weight"] = foreign.read(module).dequantize(foreign.scale_dtype)
        write(folder / shard.name, held)
        placed.update(dict.fromkeys(held, shard.name))
    if set(placed.values()) != {SINGLE}:
        write_text(folder / "model.safetensors.index.json", json.dumps({"weight_map": placed}))
    write_text(folder / "config.json", json.dumps(foreign.config))
    copy_tokenizer(foreign.folder, folder)
