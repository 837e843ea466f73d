"""`fw`: one verb per file; heavy libraries load inside the verbs."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from featherweight.cli import (
    bench,
    chat,
    compare,
    compress,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    fetch,
    finetune,
    generate,
    importing,
    layers,
    methods,
    plan,
    push,
    recipes,
    report,
    search,
    shrink,
    statistics,
    table,
    verify,
)
from featherweight.engine.launch import require_shared
from featherweight.errors import FeatherweightError

app = typer.Typer(
    name="fw",
    help="Make large language models light: compress after training, store real bytes, run from them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.run)
app.command("plan")(plan.run)
app.command("compress")(compress.run)
app.command("compare")(compare.run)
app.add_typer(table.app, name="table")
app.command("search")(search.run)
app.command("layers")(layers.run)
app.command("shrink")(shrink.run)
app.command("finetune")(finetune.run)
app.command("statistics")(statistics.run)
app.command("verify")(verify.run)
app.command("import")(importing.run)
app.command("export")(export.run)
app.command("push")(push.run)
app.command("eval")(evaluate.run)
app.command("report")(report.run)
app.command("bench")(bench.run)
app.command("generate")(generate.run)
app.command("chat")(chat.run)
app.command("fetch")(fetch.run)
app.command("methods")(methods.run)
app.command("recipes")(recipes.run)
app.command("explain")(explain.run)
app.command("doctor")(doctor.run)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a defect of ours, 2 something to mend in the input, 130 interrupted."""
    try:
        require_shared(sys.argv[1:])
        code = app(standalone_mode=False)
    except FeatherweightError as problem:
        _fail(problem)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as problem:
        # Typer carries its own copy of click in some releases, so its usage errors are known by what they can do.
        message, show = getattr(problem, "format_message", None), getattr(problem, "show", None)
        if message is None or show is None:
            raise
        if "--json" in sys.argv:
            _fail(FeatherweightError(message(), found=" ".join(sys.argv[1:]), fix="see --help"))
        show()
        raise SystemExit(2) from None
    raise SystemExit(code or 0)


def _fail(problem: FeatherweightError) -> NoReturn:
    if "--json" in sys.argv:
        import json

        print(json.dumps(problem.as_dict()))
    else:
        print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
