"""`fw chat`: turns over one growing cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli import options
from featherweight.cli.cached import KvCache, cost_line, load_with_cache
from featherweight.cli.output import note, print_json
from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from featherweight.evaluation.conversation import Conversation


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    tokens: Annotated[int, typer.Option(help="Tokens of a reply at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely tokens; 0 for all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens that hold this much of the mass.")] = 1.0,
    kv_cache: KvCache = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Talk with MODEL: a line a turn, from the terminal or a pipe; /reset begins anew, /quit ends."""
    from featherweight.decoding.sampling import Sampling
    from featherweight.evaluation.conversation import Conversation

    loaded, tokenizer = load_with_cache(model, kv_cache, device, offline=offline)
    sampling = Sampling(temperature, top_k, top_p)
    talk = Conversation(loaded, tokenizer, sampling=sampling, seed=seed or 0, system=system)
    told: list[dict[str, Any]] = []
    for line in _lines():
        if line == "/reset":
            talk.reset()
        elif line:
            told += _turn(talk, line, tokens, quiet=json)
    if json:
        print_json({"model": model, "turns": told, **talk.tally.as_dict()})
    elif talk.turns:
        note(cost_line(talk.tally))


def _lines() -> Iterator[str]:
    """What is typed or piped, until it ends or says /quit."""
    import sys

    if not sys.stdin.isatty():
        texts: Iterator[str] = iter(sys.stdin)
    else:
        texts = iter(_ask, None)
    for text in texts:
        if text.strip() == "/quit":
            return
        if text.startswith("/") and text.strip() != "/reset":
            note("commands: /reset begins anew, /quit ends")
            continue
        yield text.strip()


def _ask() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def _turn(talk: Conversation, line: str, tokens: int, *, quiet: bool) -> list[dict[str, Any]]:
    """Say `line`, print the reply as it comes; at a terminal a turn that cannot be is told and left out."""
    import sys

    pieces = []
    try:
        for piece in talk.reply(line, tokens):
            pieces.append(piece)
            if not quiet:
                print(piece, end="", flush=True)
    except FeatherweightError as problem:
        if not sys.stdin.isatty():
            raise
        note(f"error: {problem}\n  /reset begins anew")
        return []
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if not quiet:
        print()
    return [{"user": line, "assistant": "".join(pieces).strip()}]
