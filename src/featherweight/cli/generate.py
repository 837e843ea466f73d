"""`fw generate`: text, streamed."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.", show_default=False)],
    tokens: Annotated[int, typer.Option(help="New tokens at most.", min=1)] = 80,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: options.Seed = 0,
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Go on from PROMPT with MODEL."""
    import torch

    from featherweight import api
    from featherweight.evaluation.generate import generate_text

    source = options.find_model(model, offline=offline)
    dtype = torch.float32 if device in (None, "cpu") else "auto"
    loaded = api.load(source.folder, device=device, dtype=dtype)
    pieces = generate_text(loaded, source.tokenizer(), prompt, max_new_tokens=tokens, temperature=temperature, seed=seed or 0)
    if json:
        print_json({"model": model, "prompt": prompt, "text": "".join(pieces)})
        return
    first = next(pieces, "")  # whatever is wrong with the input shows before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
