"""What `fw generate` and `fw chat` share: a model with the cache that was asked for, and what it held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli import options

if TYPE_CHECKING:
    from featherweight.evaluation.generate import Tally
    from featherweight.kv_cache import CacheSettings
    from featherweight.models.source import ModelSource

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

    source = options.find_model(name, offline=offline)
    settings = asked_settings(kv_cache, source)
    dtype = torch.float32 if device in (None, "cpu") else "auto"
    loaded = api.load(source.folder, device=device, dtype=dtype, stream=stream)
    use_cache(loaded, kv_cache, settings)
    return loaded, source.tokenizer()


def asked_settings(kv_cache: str | None, source: ModelSource) -> CacheSettings | None:
    """What `--kv-cache` says; None where it names no codecs.

    Raises:
        FeatherweightError: no such codecs, or a model whose cache cannot be compressed.
    """
    from featherweight.kv_cache.presets import read_settings
    from featherweight.kv_cache.shapes import cache_shapes

    return None if kv_cache in (None, "none") else read_settings(str(kv_cache), cache_shapes(source.config())[0].key_dim)


def use_cache(model: Any, kv_cache: str | None, settings: CacheSettings | None) -> None:
    """Attach the codecs that were asked for; take away the model's own for "none"."""
    from featherweight.kv_cache import attach_cache, detach_cache

    if settings is not None:
        attach_cache(model, settings)
    elif kv_cache == "none":
        detach_cache(model)


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
