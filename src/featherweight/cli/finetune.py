"""`fw finetune`: training what stays free in a compressed output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featherweight.cli import options
from featherweight.cli.output import note, print_json

if TYPE_CHECKING:
    from featherweight.finetune.finetune import Tuned


def run(
    source: options.Output,
    output: Annotated[
        str, typer.Option("--output", "-o", help="New or empty folder; an interrupted run's own folder goes on.")
    ],
    task: Annotated[
        Literal["lm", "distill", "rte", "winogrande"],
        typer.Option(
            help="lm: predict the next token; distill: repeat the teacher's logits; rte, winogrande: choose the answer."
        ),
    ] = "lm",
    teacher: Annotated[str | None, typer.Option(help="With distill: the dense model.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text file, wikitext2, c4, ptb, or calibration (default); its last windows are held out. Of rte and winogrande: "
            "hub (default), or a folder or file (.jsonl, .tsv, .parquet) in their own columns."
        ),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Of rte and winogrande: the validation split, where --data is one file.")
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="What is free: norms, factors (of low-rank terms), outputs or signs (of rotations).  [norms,factors]"
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Leading ranks of each low-rank term that are free; rounded ones are stored anew in 16 bits."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the windows or examples.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="The highest, after a linear warm-up; it falls to 0.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    length: Annotated[int, typer.Option(help="Tokens of a window; of an example at most.")] = 256,
    samples: Annotated[
        int | None, typer.Option(help="Windows or examples to train on; all that are not held out if not given.")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Windows or examples that are only measured on.  [8 windows, 64 examples]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows or examples a step, of all processes together.")] = 4,
    every: Annotated[
        int | None, typer.Option(help="Steps between two measurements with checkpoints; a tenth of the run if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and the order of windows or examples.")] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of forwards and backwards; what is trained stays in float32.")
    ] = "float32",
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Train norms, low-rank factors and sign vectors of a folder made by `fw compress` into a new one."""
    from accelerate import PartialState

    from featherweight import api
    from featherweight.finetune.settings import Settings

    parts = tuple(dict.fromkeys(options.split(train))) or ("norms", "factors")
    settings = Settings(
        task=task, train=parts, rank=rank, epochs=epochs, learning_rate=learning_rate, weight_decay=weight_decay,
        length=length, samples=samples, held_out=held_out, batch_size=batch_size, every=every, seed=seed,
        precision=precision,
    )  # fmt: skip
    dense = options.find_model(teacher, offline=offline) if teacher else None

    def draw(step: int, steps: int, training: float, measured: float) -> None:
        if not json:
            note(f"step {step}/{steps}: training loss {training:.4f}, held out {measured:.4f}")

    tuned = api.finetune(
        source, output, settings, data=data, validation=validation, teacher=dense, device=device, offline=offline,
        note=(lambda line: None) if json else note, report=draw,
    )  # fmt: skip
    if not PartialState().is_main_process:
        return
    if json:
        print_json(tuned.as_dict())
    else:
        _show(tuned)


def _show(tuned: Tuned) -> None:
    """What came of it."""
    told = tuned.told
    if told["stopped"]:
        print(f"stopped: {told['stopped']}; the best state before is kept")
    kind, unit = {"lm": ("loss", "token"), "distill": ("KL from the teacher", "token")}.get(
        told["settings"]["task"], ("loss", "question")
    )
    print(f"held-out {kind} {told['before']:.4f} -> {told['after']:.4f} nats a {unit}, state of step {told['best_step']}")
    if told["accuracy"]:
        before, after = (told["accuracy"][each] for each in ("before", "after"))
        print(f"accuracy on {told['data']['questions']} validation questions {before:.4f} -> {after:.4f}")
    if not told["best_step"]:
        print("no state was better than the start: the values are as they were")
    print(
        f"reloaded from disk: logits repeat within {tuned.proof['largest_difference']:.2e} (bound {tuned.proof['bound']:.0e})"
    )
    print(f"{tuned.folder} in {told['seconds']:.1f} s")
