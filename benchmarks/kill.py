"""Kill a run at random moments and go on: are the results bit-identical?

    python benchmarks/kill.py --kills 20

Each trial starts the command in a process of its own, waits until a random number of files is finished and then a random
time, sends SIGKILL, starts it again and compares the hashes of all weight files with an undisturbed run's.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from featherweight.packed.files import sha256

SETTINGS = ["--recipe", "gptq-4bit", "--samples", "32", "--length", "256", "--offline", "--device", "cpu", "--json"]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("model-*.safetensors"))}


def start(model: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "featherweight.cli.main", "compress", model, "-o", str(folder), *SETTINGS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    work = Path(tempfile.mkdtemp())
    began = time.perf_counter()
    if start(options.model, work / "whole").wait():
        raise SystemExit("the undisturbed run failed")
    seconds = time.perf_counter() - began
    expected, identical, landed = hashes(work / "whole"), 0, []
    for trial in range(options.kills):
        folder = work / f"trial-{trial}"
        process = start(options.model, folder)
        began, files = time.perf_counter(), draw.randrange(len(expected) + 1)
        while process.poll() is None and len(list(folder.glob("model-*.safetensors"))) < files:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3) * seconds / len(expected))
        moment = time.perf_counter() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed.append(len(list(folder.glob("model-*.safetensors"))) if folder.exists() else 0)
        if start(options.model, folder).wait():
            raise SystemExit(f"trial {trial}: the second run failed")
        identical += hashes(folder) == expected
        print(
            f"killed after {moment:.1f} s with {landed[-1]} files finished: {'identical' if hashes(folder) == expected else 'DIFFERENT'}"
        )
        shutil.rmtree(folder)
    print(f"{identical} of {options.kills} bit-identical; undisturbed run {seconds:.1f} s")
    raise SystemExit(identical != options.kills)


if __name__ == "__main__":
    main()
