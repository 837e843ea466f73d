"""What `fw generate` and `fw chat` share: a model with the cache that was asked for, and what it held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli import options

if TYPE_CHECKING:
    from featherweight.evaluation.generate import Tally

KvCache = Annotated[
    str | None,
    typer.Option(
        help="Codecs of keys and values: exact, int8, kivi-4, kivi-2, rotated-4, -3, -2, qjl, a .yaml file, "
        "keys=integer:bits=4,axis=channel;values=..., or none for the stock cache. If not given, as the model was compressed.",
        metavar="CODECS",
    ),
]


def load_with_cache(
    name: str, kv_cache: str | None, device: str | None, *, stream: bool = False, offline: bool
) -> tuple[Any, Any]:
    """The model, in float32 on a CPU, and its tokenizer.

    Raises:
        FeatherweightError: no such model or codecs, or a model whose cache cannot be compressed.
    """
    import torch

    from featherweight import api
    from featherweight.kv_cache import attach_cache, detach_cache
    from featherweight.kv_cache.presets import read_settings
    from featherweight.kv_cache.shapes import cache_shapes

    source = options.find_model(name, offline=offline)
    settings = None
    if kv_cache not in (None, "none"):
        settings = read_settings(str(kv_cache), cache_shapes(source.config())[0].key_dim)
    dtype = torch.float32 if device in (None, "cpu") else "auto"
    loaded = api.load(source.folder, device=device, dtype=dtype, stream=stream)
    if settings is not None:
        attach_cache(loaded, settings)
    elif kv_cache == "none":
        detach_cache(loaded)
    return loaded, source.tokenizer()


def cost_line(tally: Tally) -> str:
    """Tokens, speed, and what the cache held."""
    from featherweight.reports.tables import human_bytes

    told = tally.as_dict()
    speed = told["tokens_per_second"]
    line = f"{tally.prompt_tokens} tokens read in {tally.prompt_seconds:.2f} s, {tally.tokens} made"
    line += "" if speed is None else f", {speed:.1f} a second"
    line += " (one CUDA graph a token)" if tally.path == "fused" else f" (no graph: {tally.note})" if tally.note else ""
    cache = told["cache"]
    if cache is not None:
        exact = cache["nbytes"] - cache["coded_nbytes"]
        line += (
            f"; cache of {cache['tokens']} tokens: {human_bytes(cache['nbytes'])} ({human_bytes(cache['coded_nbytes'])} in code, "
            f"{human_bytes(exact)} exact) instead of {human_bytes(cache['exact_nbytes'])}"
        )
    return line
