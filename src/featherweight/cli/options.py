"""Options that several verbs share, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featherweight.errors import FeatherweightError

if TYPE_CHECKING:
    from featherweight.reports.tracking import Tracking

Model = Annotated[
    str, typer.Argument(help="Folder, hub name, .gguf file, or a packaged model: demo, smollm2-135m.", show_default=False)
]
Output = Annotated[str, typer.Argument(help="A folder made by `fw compress`.", show_default=False)]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Shipped recipe (see `fw recipes`) or a YAML file.")]
Calibration = Annotated[
    str | None,
    typer.Option(help="Calibration text: a file (.txt, .jsonl, .npy, .safetensors, .pt), wikitext2, c4, ptb, or sample."),
]
Samples = Annotated[int | None, typer.Option(help="Calibration windows.", min=1)]
Length = Annotated[int | None, typer.Option(help="Tokens of a window.", min=2)]
Seed = Annotated[int | None, typer.Option(help="Seed of the calibration windows and of the methods.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting: --set steps.0.bits=3; may be repeated.", metavar="KEY=VALUE"),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of activations; float32 on a CPU if not given.")
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="One block in memory at a time, read anew for every forward: for models that do not fit."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track", help="Keep the run in wandb, mlflow or tensorboard; comma separated or repeated.", metavar="TRACKER"
    ),
]
TrackFolder = Annotated[Path, typer.Option(help="Folder of what is tracked on this machine.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")]


def recipe_changes(
    calibration: str | None, samples: int | None, length: int | None, seed: int | None, settings: list[str] | None
) -> dict[str, Any]:
    """Dotted settings from the options.

    Raises:
        FeatherweightError: a `--set` without `=`.
    """
    import yaml

    named = {
        "calibration.source": calibration,
        "calibration.samples": samples,
        "calibration.length": length,
        "calibration.seed": seed,
        "seed": seed,
    }
    changes = {key: value for key, value in named.items() if value is not None}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise FeatherweightError(
                "a setting has no value", found=f"--set {setting}", expected="--set KEY=VALUE", fix="--set steps.0.bits=3"
            )
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise FeatherweightError(
                "a setting's value is not readable", found=f"--set {setting}: {problem}", expected="YAML"
            ) from None
    return changes


def split(several: list[str] | None) -> list[str]:
    """The parts of a repeated or comma separated option."""
    return [part.strip() for text in several or [] for part in text.split(",") if part.strip()]


def tracking(names: list[str] | None, folder: Path, *, offline: bool) -> Tracking:
    """Where a verb's run is kept; to be made first, as it refuses a missing library.

    Raises:
        FeatherweightError: no such tracker, or its library is not installed.
    """
    from featherweight.cli.output import note
    from featherweight.reports.tracking import Tracking

    return Tracking(split(names), folder, offline, note)


def ask(message: str) -> bool:
    """A question to whoever sits at the terminal; nobody there means no."""
    import sys

    return sys.stdin.isatty() and typer.confirm(message, err=True)


def find_model(name: str, *, offline: bool, yes: bool = False) -> Any:
    """The model of that name; downloads are asked for unless `yes`."""
    from featherweight.models.source import resolve_model

    return resolve_model(name, offline=offline, confirm=(lambda message: True) if yes else ask)
