"""`fw fetch`: download once; every verb then runs with --offline."""

from __future__ import annotations

from typing import Annotated

import typer

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(
    name: Annotated[
        str,
        typer.Argument(help="Hub model, smollm2-135m, or a dataset: wikitext2, c4, ptb.", show_default=False),
    ],
    yes: options.Yes = False,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Bring a model or dataset into the local cache."""
    from featherweight.data.corpora import load_corpus
    from featherweight.data.published import PUBLISHED

    if name in PUBLISHED or name.startswith("hf:"):
        corpora = [
            load_corpus(name, split="calibration", offline=offline),
            load_corpus(name, split="evaluation", offline=offline),
        ]
        fetched = {"name": name, "kind": "dataset", "sha256": [corpus.sha256 for corpus in corpora]}
    else:
        source = options.find_model(name, offline=offline, yes=yes)
        fetched = {"name": name, "kind": "model", "folder": str(source.folder)}
    if json:
        print_json(fetched)
    else:
        print(f"{fetched['kind']} {name} is here" + (f": {fetched['folder']}" if "folder" in fetched else ""))
