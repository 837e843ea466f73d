"""Speed in a process of its own, so that one model's memory is not counted for the next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError


def fastllama_speed(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`fastllama_protocol` of a model folder, in a fresh process.

    Args:
        settings: `prompts`, `context`, `device`, `dtype`.

    Raises:
        FeatherweightError: as the protocol raises it, or that the process failed.
    """
    asked = json.dumps({"folder": str(folder), **settings})
    done = subprocess.run([sys.executable, "-m", __name__, asked], capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode != 0 or not last:
        raise FeatherweightError(
            f"the speed of {folder} could not be measured",
            found=(done.stderr.strip().splitlines() or ["no output"])[-1],
            expected="as `fw bench --protocol fastllama`",
        )
    told: dict[str, Any] = json.loads(last[0])
    if "problem" in told:
        problem = told["problem"]
        raise FeatherweightError(problem["error"], found=problem["found"], expected=problem["expected"], fix=problem["fix"])
    return told


def _measure(folder: str, prompts: int, context: int, device: str | None, dtype: str) -> dict[str, Any]:
    from featherweight.evaluation.fastllama import fastllama_protocol
    from featherweight.integrations.load import load

    return fastllama_protocol(load(folder, device=device, dtype=dtype), prompts=prompts, context=context)


def _main() -> None:
    try:
        told = _measure(**json.loads(sys.argv[1]))
    except FeatherweightError as problem:
        told = {"problem": problem.as_dict()}
    print(json.dumps(told))


if __name__ == "__main__":
    _main()
