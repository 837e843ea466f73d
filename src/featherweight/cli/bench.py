"""`fw bench`: latency, tokens a second, bytes read and memory, each with how it was taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featherweight.cli import options
from featherweight.cli.cached import KvCache, asked_settings, use_cache
from featherweight.cli.explain import kernels_of
from featherweight.cli.output import note, print_json
from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from featherweight.models.source import ModelSource


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    protocol: Annotated[
        Literal["decode", "fastllama"],
        typer.Option(help="decode: prefill and decode apart; fastllama: one-token latency and (101 − 1)-token speed."),
    ] = "decode",
    batch: Annotated[str, typer.Option(help="Sequences at once, comma separated.")] = "1",
    context: Annotated[str, typer.Option(help="Tokens before decoding, comma separated.")] = "128",
    tokens: Annotated[int, typer.Option(help="Decode steps of a repeat.", min=1)] = 16,
    repeats: Annotated[int, typer.Option(help="Repeats; prompts of the fastllama protocol.", min=1)] = 3,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table to this Markdown file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw tokens a second: .html, or .png or .svg by matplotlib.")] = None,
    kv_cache: KvCache = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Time MODEL as it runs from its packed weights; on a GPU also by a CUDA graph."""
    from featherweight.engine.compress import pick_device
    from featherweight.reports.following import speed_numbers
    from featherweight.reports.speed import check_plot, print_speed, write_markdown, write_plot

    if plot is not None:
        check_plot(plot)
        if protocol == "fastllama":
            raise FeatherweightError(
                "this protocol measures one point", found="--plot", expected="--protocol decode", fix="leave --plot out"
            )
    tracking = options.tracking(track, track_folder, offline=offline)
    settings = {
        "batches": _counts(batch, "--batch"), "contexts": _counts(context, "--context"), "tokens": tokens, "repeats": repeats,
    }  # fmt: skip
    place = str(pick_device(device))
    source = options.find_model(model, offline=offline)
    told = settings if kv_cache is None else {**settings, "kv_cache": kv_cache}
    with tracking.run("bench", source, {"bench": {"protocol": protocol, **told}}) as tracked:
        result = _measure(source, protocol, settings, place, dtype, kv_cache)
        tracked.configure({"device": result["device"], "dtype": result["dtype"]})
        tracked.totals(speed_numbers(result))
    if (Path(model) / "ledger.json").is_file():
        result["kernels"] = kernels_of(model, place)
    if markdown is not None:
        write_markdown(markdown, model, result)
    if plot is not None:
        write_plot(plot, model, result)
    if json:
        print_json({"model": model, **result})
    else:
        print_speed(model, result)


def _measure(
    source: ModelSource, protocol: str, settings: dict[str, Any], device: str, dtype: str | None, kv_cache: str | None
) -> dict[str, Any]:
    from featherweight import api
    from featherweight.evaluation.fastllama import fastllama_protocol
    from featherweight.evaluation.speed import measure_speed

    codecs = asked_settings(kv_cache, source)
    loaded = api.load(source.folder, device=device, dtype=dtype or "auto")
    use_cache(loaded, kv_cache, codecs)
    if protocol == "fastllama":
        return fastllama_protocol(loaded, prompts=settings["repeats"], context=settings["contexts"][0])
    return measure_speed(
        loaded,
        **settings,
        report=lambda timing: note(
            f"batch {timing.batch}, context {timing.context}: "
            f"{timing.graph_tokens_per_second or timing.tokens_per_second:.1f} tokens/s"
        ),
    )


def _counts(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise FeatherweightError(
            f"{option} is a list of numbers", found=text, expected="numbers with commas between", fix=f"{option} 1,4,16"
        ) from None
