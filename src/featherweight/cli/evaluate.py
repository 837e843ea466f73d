"""`fw eval`: perplexity, divergence and agreement on a text, or questions answered; each number with its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featherweight.cli import options
from featherweight.cli.cached import KvCache
from featherweight.cli.output import counting_bar, print_json
from featherweight.errors import FeatherweightError

_TASK = (
    "Questions instead of a text, comma separated: continuation (shipped), race-high, race-middle, a file (race-high:FILE), "
    "a task of lm-eval (arc_easy, race, ...), or a set of them (wanda, besa, spqr, quip, ...); through the cache recall:copy, "
    "recall:induction, recall:passkey, and longbench:FOLDER."
)


def run(
    model: Annotated[str, typer.Argument(help="A folder made by `fw compress`, or any dense model.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Text file, wikitext2, c4, ptb, wikitext2:FILE, or heldout.  [heldout]")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "--tasks", help=_TASK)] = None,
    letters: Annotated[
        bool, typer.Option("--letters", help="With our own questions: ask for a letter, as FastLlama did.")
    ] = False,
    fewshot: Annotated[int | None, typer.Option(help="With lm-eval: examples before each question.", min=0)] = None,
    batch_size: Annotated[int | None, typer.Option(help="With lm-eval: requests at once; 1 if not given.", min=1)] = None,
    include_path: Annotated[Path | None, typer.Option(help="With lm-eval: folder of further tasks, as its YAML files.")] = None,
    tasks_data: Annotated[
        Path | None, typer.Option(help="With lm-eval: folder with TASK.jsonl in place of the hub's data.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Dense model to compare with: KL and top-1 agreement.")] = None,
    length: options.Length = None,
    windows: Annotated[
        int | None, typer.Option("--windows", "--limit", help="Windows, or questions of each task, at most.", min=1)
    ] = None,
    variant: Annotated[
        Literal["standard", "new"] | None, typer.Option(help="Protocol: standard as GPTQ, new as SparseGPT.  [standard]")
    ] = None,
    kv_cache: KvCache = None,
    stepwise: Annotated[
        bool,
        typer.Option("--stepwise", help="With a coded cache: feed it token by token, not in one forward that reads the same."),
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    stream: options.Stream = False,
    track: options.Track = None,
    track_folder: options.TrackFolder = Path("tracking"),
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure MODEL on a text or on questions."""
    from featherweight import api
    from featherweight.reports.tables import print_measurements

    tracking = options.tracking(track, track_folder, offline=offline)
    texts = {"data": data, "against": against, "variant": variant, "stepwise": stepwise or None, "stream": stream or None}
    both = {"length": length, "kv_cache": kv_cache}
    harness = {"fewshot": fewshot, "batch_size": batch_size, "include_path": include_path, "tasks_data": tasks_data}
    tasks = options.split(task)
    _check(tasks, texts, {**harness, "letters": letters or None})
    source = options.find_model(model, offline=offline)
    common: dict[str, Any] = {"device": device, "dtype": dtype, "offline": offline}
    asked = {**texts, **both, **harness, "tasks": tasks or None, "windows": windows, "letters": letters or None}
    settings = {**both, **(harness if tasks else texts)}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    with tracking.run("eval", source, {"eval": {name: value for name, value in asked.items() if value is not None}}) as tracked:
        with counting_bar("questions" if tasks else "windows", quiet=json) as progress:
            if tasks:
                measurements = api.answer(
                    source.folder, tasks, letters=letters, limit=windows, progress=progress, **given, **common
                )
            else:
                measurements = api.evaluate(source.folder, windows=windows, progress=progress, **given, **common)
        for each in measurements:
            tracked.measured("" if each.protocol.harness else each.protocol.corpus, [each])
    if json:
        print_json({"model": model, "measurements": [measurement.as_dict() for measurement in measurements]})
    else:
        print_measurements(model, measurements)


def _check(tasks: Sequence[str], texts: Mapping[str, Any], questions: Mapping[str, Any]) -> None:
    """An option that would have no effect is refused."""
    idle = [name for name, value in (texts if tasks else questions).items() if value is not None]
    if idle:
        raise FeatherweightError(
            f"no such option for {'questions' if tasks else 'a text'}: --{idle[0].replace('_', '-')}",
            found=f"--task {','.join(tasks)}" if tasks else "no --task",
            expected="--data, --against, --variant, --stepwise and --stream for a text; --letters or lm-eval's options for --task",
        )
