"""The new output: the old one's files with the trained values in their stored dtypes, its ledger, the proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.engine.journal import Entry, Journal
from featherweight.engine.save import LEDGER, copy_tokenizer
from featherweight.engine.verify import PROBE, compare_logits, reload_logits
from featherweight.errors import FeatherweightError
from featherweight.packed.base import PackedWeight, layout_bytes, layout_of
from featherweight.packed.files import link, write, write_text
from featherweight.planning.rows import describe_storage

INDEX = "model.safetensors.index.json"


def stored_tensors(path: Path, modules: Mapping[str, Any], changed: Mapping[str, PackedWeight]) -> dict[str, Tensor]:
    """A weight file's tensors, with the weights that are stored anew (`changed`) in the place of the old ones."""
    tensors = load_file(path)
    for module, weight in changed.items():
        old = [f"{module}.{part}" for part in layout_of(modules[module])]
        if old[0] in tensors:
            for name in old:
                del tensors[name]
            tensors |= {f"{module}.{part}": tensor.cpu() for part, tensor in weight.tensors().items()}
    return tensors


def write_shards(
    source: Path, folder: Path, journal: Journal, changed: Mapping[str, PackedWeight], trained: Mapping[str, Tensor]
) -> None:
    """Write the files that hold something trained, link the others; `journal` gets an entry for each.

    Raises:
        FeatherweightError: a trained tensor that no file holds, or one beyond the range of its stored dtype.
    """
    ledger = json.loads((source / LEDGER).read_text(encoding="utf-8"))
    modules = json.loads((source / "config.json").read_text(encoding="utf-8"))["quantization_config"]["modules"]
    journal.entries.clear()
    placed: dict[str, str] = {}
    for shard, digest in ledger["files"].items():
        tensors = stored_tensors(source / shard, modules, changed)
        held = trained.keys() & tensors.keys()
        for name in held:
            tensors[name] = _stored(name, tensors[name], trained[name].cpu())
        if held:
            digest = write(folder / shard, tensors)
        else:
            link(source / shard, folder / shard)
        placed |= dict.fromkeys(tensors, shard)
        journal.add(Entry(shard, digest))
    missing = sorted(trained.keys() - placed.keys())
    if missing:
        raise FeatherweightError("a trained tensor is in no weight file", found=missing[0], expected=f"in {source}")
    size = json.loads((source / INDEX).read_text(encoding="utf-8"))["metadata"]["total_size"] + grown(modules, changed)
    write_text(folder / INDEX, json.dumps({"metadata": {"total_size": size}, "weight_map": placed}, indent=1))


def grown(modules: Mapping[str, Any], changed: Mapping[str, PackedWeight]) -> int:
    """Bytes that the weights stored anew take more than before."""
    return sum(weight.nbytes - layout_bytes(layout_of(modules[name])) for name, weight in changed.items())


def finish(
    source: Path,
    folder: Path,
    journal: Journal,
    changed: Mapping[str, PackedWeight],
    logits: Tensor,
    told: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Write configuration, tokenizer, recipe, plan, probe and ledger; reload from disk and compare with `logits` in memory.

    Args:
        logits: of the probe's tokens.
        told: the ledger's section `finetune`.

    Returns:
        The ledger.

    Raises:
        FeatherweightError: the reloaded logits lie beyond the bound; the folder then holds no `config.json`.
    """
    copy_tokenizer(source, folder)
    shutil.copyfile(source / "recipe.yaml", folder / "recipe.yaml")
    tokens = load_file(source / PROBE)["tokens"]
    write(folder / PROBE, {"tokens": tokens, "logits": logits[:, 7::8].contiguous()})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["modules"] |= {name: weight.description() for name, weight in changed.items()}
    write_text(folder / "config.json", json.dumps(config, indent=2))
    try:
        proof = compare_logits(logits, reload_logits(folder, {"tokens": tokens}, device, torch.float32), torch.float32)
    except Exception:
        (folder / "config.json").unlink()
        raise
    ledger = json.loads((source / LEDGER).read_text(encoding="utf-8"))
    ledger["rows"] = [_row(row, changed.get(row["module"])) for row in ledger["rows"]]
    ledger["files"] = {entry.shard: entry.sha256 for entry in journal.entries}
    ledger["total"] = _total(ledger, sum((folder / shard).stat().st_size for shard in ledger["files"]), bool(changed))
    ledger |= {"compute": {"device": device.type, "dtype": str(torch.float32)}, "proof": proof, "finetune": dict(told)}
    plan = json.loads((source / "plan.json").read_text(encoding="utf-8"))
    write_text(folder / "plan.json", json.dumps({**plan, "rows": ledger["rows"], "total": ledger["total"]}, indent=1))
    write_text(folder / LEDGER, json.dumps(ledger, indent=1))
    journal.finish()
    return ledger


def _stored(name: str, old: Tensor, new: Tensor) -> Tensor:
    """`old` with its leading rows replaced by `new`, in the dtype of `old`."""
    values = old.clone()
    values[: len(new)] = new.to(old.dtype)
    if not bool(values.isfinite().all()):
        raise FeatherweightError(
            "a trained value lies beyond its stored dtype", found=f"{name}: {float(new.abs().max()):.3g}",
            expected=f"at most {torch.finfo(old.dtype).max:.3g}, {old.dtype}", fix="train with a lower learning rate",
        )  # fmt: skip
    return values


def _row(row: dict[str, Any], weight: PackedWeight | None) -> dict[str, Any]:
    """The row of a linear that is stored anew has its new storage and bytes; no other changes."""
    if weight is None:
        return row
    count = weight.shape[0] * weight.shape[1]
    parts = {name: 8 * tensor.numel() * tensor.element_size() / count for name, tensor in weight.tensors().items()}
    sizes = {"predicted_bytes": weight.nbytes, "stored_bytes": weight.nbytes, "bits_per_weight": 8 * weight.nbytes / count}
    return {**row, **sizes, "storage": describe_storage(weight.description()), "component_bits": parts}


def _total(ledger: Mapping[str, Any], file_bytes: int, changed: bool) -> dict[str, Any]:
    """Totals of the new rows; weights are as many as before, so bits grow as the bytes."""
    total, rows = dict(ledger["total"]), ledger["rows"]
    total["file_bytes"] = file_bytes
    if changed:
        compressed = [row for row in rows if row["method"]]
        weights = sum(torch.Size(row["shape"]).numel() for row in compressed)
        size = sum(row["stored_bytes"] for row in rows)
        total["linear_bits"] = 8 * sum(row["stored_bytes"] for row in compressed) / weights
        total["model_bits"] *= size / total["predicted_bytes"]
        total |= {"predicted_bytes": size, "nominal_bits": None}
    return total
