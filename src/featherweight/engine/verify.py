"""The proof: reload from disk, recompute, compare, check hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.engine.journal import check_shard
from featherweight.errors import FeatherweightError
from featherweight.models.experts import repeating_routing

PROBE = "probe.safetensors"
#: What the names of noted routings begin with there.
ROUTING = "routing."

#: Largest difference of a logit, relative to the largest logit, that rounding alone may make.
BOUNDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float64: 1e-9}


def reload_logits(
    folder: Path, probe: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype, *, stream: bool = False
) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` of the model in `folder`, loaded as any user would; block by block with `stream`, and
    where it does not fit.

    Args:
        probe: token ids `[batch, tokens]` as "tokens", and the routing of mixtures of experts, which is repeated.
    """
    from featherweight.integrations.load import fits, load

    model = load(folder, device=str(device), dtype=dtype, stream=stream or not fits(folder, device, dtype))
    routing = {name.removeprefix(ROUTING): tensor for name, tensor in probe.items() if name.startswith(ROUTING)}
    with torch.no_grad(), repeating_routing(model, routing):
        logits: Tensor = model(input_ids=probe["tokens"].to(device), use_cache=False).logits.float().cpu()
    return logits


def compare_logits(memory: Tensor, disk: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Largest difference relative to the largest logit, against the bound of `dtype`.

    Raises:
        FeatherweightError: beyond the bound, or not finite.
    """
    difference = float((memory - disk).abs().max() / memory.abs().max().clamp(min=1e-30))
    bound = BOUNDS[dtype]
    if not difference <= bound:
        raise FeatherweightError(
            "the saved model does not repeat the logits of the model in memory",
            found=f"largest relative difference {difference:.3g}",
            expected=f"at most {bound:.3g} in {dtype}",
            fix="the files are damaged, or a library changed under them; compress again, and report it if it stays",
        )
    return {"largest_difference": difference, "bound": bound, "dtype": str(dtype), "identical": difference == 0.0}


def verify(folder: str | Path, *, device: str | None = None, stream: bool = False) -> dict[str, Any]:
    """Check every shard's hash, the total bytes, and that the model repeats its recorded logits.

    Args:
        stream: keep one block in memory at a time; so does a model that does not fit.

    Returns:
        `{"files": n, "bytes": n, "proof": {...}}`.

    Raises:
        FeatherweightError: naming the first thing that is wrong.
    """
    from featherweight.engine.save import read_ledger

    folder = Path(folder)
    ledger = read_ledger(folder)
    for shard, digest in ledger["files"].items():
        check_shard(folder / shard, digest)
    size = sum((folder / shard).stat().st_size for shard in ledger["files"])
    if size != ledger["total"]["file_bytes"]:
        raise FeatherweightError(
            "the weight files have another size than the ledger says", found=size, expected=ledger["total"]
        )
    if not (folder / PROBE).is_file():
        raise FeatherweightError("the probe is missing", found=f"no {folder / PROBE}", expected="the recorded logits")
    probe = load_file(folder / PROBE)
    place = torch.device(device or "cpu")
    dtype = torch.float32 if place.type == "cpu" else _dtype(ledger["compute"]["dtype"])
    logits = reload_logits(folder, probe, place, dtype, stream=stream)[:, 7::8]
    bound_dtype = max((dtype, _dtype(ledger["compute"]["dtype"])), key=lambda kind: BOUNDS[kind])
    return {"files": len(ledger["files"]), "bytes": size, "proof": compare_logits(probe["logits"], logits, bound_dtype)}


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name.removeprefix("torch."))
