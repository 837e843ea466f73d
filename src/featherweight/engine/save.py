"""The files around the shards, and the proof that what was saved is what was made."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from featherweight.engine.verify import PROBE, ROUTING, compare_logits, reload_logits
from featherweight.errors import FeatherweightError
from featherweight.integrations.config import cache_section, quantization_config
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.packed.files import write, write_text
from featherweight.planning.rows import Row, Totals
from featherweight.version import __version__

if TYPE_CHECKING:
    from featherweight.engine.walk import Walk

LEDGER = "ledger.json"
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja")


def finish_output(
    walk: Walk, rows: tuple[Row, ...], totals: Totals, tokens: Tensor, logits: Tensor, seconds: float
) -> dict[str, Any]:
    """Write index, configuration, tokenizer, recipe, plan, probe and ledger; reload from disk and compare.

    Returns:
        The proof: largest difference of the probe's logits, its bound, the dtype.

    Raises:
        FeatherweightError: the reloaded logits lie beyond the bound; the folder then holds no `config.json`.
    """
    folder, plan = walk.output, walk.plan
    write_text(folder / "model.safetensors.index.json", json.dumps(_index(walk), indent=1))
    write_text(folder / "recipe.yaml", plan.recipe.to_yaml())
    copy_tokenizer(plan.source.folder, folder)
    routing = {ROUTING + name: tensor for name, tensor in walk.routing.items()}
    probe = {"tokens": tokens, "logits": logits[:, 7::8].contiguous(), **routing}
    write(folder / PROBE, probe)
    write_text(folder / "config.json", json.dumps(_config(walk, rows), indent=2))
    try:
        proof = compare_logits(logits, reload_logits(folder, probe, walk.device, walk.dtype), walk.dtype)
    except Exception:
        (folder / "config.json").unlink()
        raise
    write_text(folder / "plan.json", json.dumps({**plan.as_dict(), "rows": [row.as_dict() for row in rows]}, indent=1))
    write_text(folder / LEDGER, json.dumps(_ledger(walk, rows, totals, proof, seconds), indent=1))
    walk.journal.finish()
    return proof


def read_ledger(folder: Path) -> dict[str, Any]:
    """The ledger of a finished output.

    Raises:
        FeatherweightError: the folder is no finished output.
    """
    path = folder / LEDGER
    if not path.is_file():
        state = "an unfinished output" if (folder / "journal.json").is_file() else "no output of featherweight"
        state = state if folder.is_dir() else "no folder"
        raise FeatherweightError(
            "no ledger here",
            found=f"{folder} is {state}",
            expected=f"a folder made by `fw compress`, with {LEDGER}",
            fix="run the same `fw compress` again to finish it" if "unfinished" in state else "",
        )
    try:
        ledger: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"files", "total", "proof", "compute"} <= ledger.keys():
            raise ValueError("sections are missing")
    except (ValueError, AttributeError) as problem:
        raise FeatherweightError(
            "the ledger cannot be read", found=f"{path}: {problem}", expected="the file as `fw compress` wrote it",
            fix="delete it and run the same `fw compress` again",
        ) from None  # fmt: skip
    return ledger


def _index(walk: Walk) -> dict[str, Any]:
    placed: dict[str, str] = {}
    for entry in walk.journal.entries:
        with safe_open(walk.output / entry.shard, framework="pt") as file:
            placed.update(dict.fromkeys(file.keys(), entry.shard))
    return {"metadata": {"total_size": walk.plan.totals.predicted_bytes}, "weight_map": placed}


def _config(walk: Walk, rows: Iterable[Row]) -> dict[str, Any]:
    config = json.loads((walk.plan.source.folder / "config.json").read_text(encoding="utf-8"))
    descriptions = {row.module: row.description for row in rows if row.description is not None}
    if walk.plan.untied:
        for section in (config, config.get("text_config")):
            if isinstance(section, dict):
                section["tie_word_embeddings"] = False
    cache, section = walk.plan.cache, None
    if cache is not None:
        section = cache_section(cache.settings.as_dict(), DrawnConstants(cache.settings, cache.shapes).fingerprint())
    config["quantization_config"] = quantization_config(
        descriptions, walk.plan.recipe.name, section, experts=bool(walk.plan.structure.experts)
    )
    return config


def _ledger(walk: Walk, rows: Iterable[Row], totals: Totals, proof: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    plan = walk.plan
    packages = ("torch", "transformers", "safetensors")
    return {
        "format_version": 1,
        "model": {"name": plan.source.name, "fingerprint": plan.fingerprint},
        "recipe": plan.recipe.as_dict(),
        "calibration": {**walk.windows.description, "sha256": walk.windows.sha256} if walk.windows else None,
        "compute": {"device": walk.device.type, "dtype": str(walk.dtype), "ranks": walk.ranks.count},
        "versions": {
            "featherweight": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "seconds": seconds,
        "files": {entry.shard: entry.sha256 for entry in walk.journal.entries},
        "total": vars(totals),
        **({"kv_cache": plan.cache.as_dict()} if plan.cache else {}),
        "proof": dict(proof),
        "rows": [row.as_dict() for row in rows],
    }


def copy_tokenizer(source: Path, target: Path) -> None:
    """Tokenizer files and generation settings, as they are."""
    for pattern in ("generation_config.json", *_TOKENIZER):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
