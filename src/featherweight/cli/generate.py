"""`fw generate`: text, streamed."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.cached import KvCache, cost_line, load_with_cache
from featherweight.cli.output import note, print_json


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.", show_default=False)],
    tokens: Annotated[int, typer.Option(help="New tokens at most.", min=1)] = 80,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely tokens; 0 for all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens that hold this much of the mass.")] = 1.0,
    kv_cache: KvCache = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    stream: options.Stream = False,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Go on from PROMPT with MODEL; speed and the cache's bytes on stderr."""
    from featherweight.evaluation.generate import Tally, generate_text

    loaded, tokenizer = load_with_cache(model, kv_cache, device, stream=stream, offline=offline)
    tally = Tally()
    pieces = generate_text(
        loaded, tokenizer, prompt, max_new_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed or 0,
        tally=tally,
    )  # fmt: skip
    if json:
        print_json({"model": model, "prompt": prompt, "text": "".join(pieces), **tally.as_dict()})
        return
    first = next(pieces, "")  # whatever is wrong with the input shows before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    note(cost_line(tally))
