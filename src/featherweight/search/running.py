"""One model run by itself in a fresh process: its speed, and the most memory that it took."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError


def run_apart(
    folder: Path, *, device: str = "cpu", batch: int = 1, context: int = 128, tokens: int = 16, repeats: int = 3
) -> dict[str, Any]:
    """Load a model in a process of its own, read random contexts, and decode greedily.

    Args:
        folder: a compressed output or a dense model.
        device: where it runs, in the checkpoint's dtype.
        batch, context: sequences at once, and tokens of each.
        tokens: decode steps of a repeat.
        repeats: after one warm-up.

    Returns:
        `{tokens_per_second, peak_bytes, loaded_bytes, device, dtype}`: `batch` over the median decode step; on a GPU the most
        memory allocated and what was allocated after loading, on a CPU the largest resident set and that after loading.

    Raises:
        FeatherweightError: the process failed; the last line that it wrote is told.
    """
    wanted = {"folder": str(folder), "device": device, "batch": batch, "context": context, "tokens": tokens, "repeats": repeats}
    command = [sys.executable, "-m", "featherweight.search.running", json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise FeatherweightError(
            "the model could not be run in a process of its own",
            found=f"{folder} on {device}: exit {done.returncode}, {said[-1][:300]}",
            expected="a model that fits the memory and the context",
            fix="try `fw bench` on it",
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: str, device: str, batch: int, context: int, tokens: int, repeats: int) -> dict[str, Any]:
    import torch

    from featherweight import api
    from featherweight.evaluation.forward import dtype_of, measuring, vocabulary_of
    from featherweight.kv_cache import new_cache

    model = api.load(folder, device=device)
    on_gpu = torch.device(device).type == "cuda"
    loaded = torch.cuda.memory_allocated(device) if on_gpu else resident_peak()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    ids = torch.randint(0, vocabulary_of(model) or 2, (batch, context), generator=torch.Generator().manual_seed(0)).to(device)
    steps: list[float] = []
    with measuring(model):
        for repeat in range(repeats + 1):
            output = model(input_ids=ids, past_key_values=new_cache(model), use_cache=True, logits_to_keep=1)
            for _ in range(tokens):
                chosen = output.logits[:, -1].argmax(-1, keepdim=True)
                started = _now(on_gpu)
                output = model(input_ids=chosen, past_key_values=output.past_key_values, use_cache=True)
                steps += [_now(on_gpu) - started] if repeat else []
            del output
    return {
        "tokens_per_second": batch / statistics.median(steps),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else resident_peak(),
        "loaded_bytes": loaded,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype_of(model),
    }


def resident_peak() -> int:
    """Bytes of this process's largest resident set so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone; on Linux `getrusage` also counts the process that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now(on_gpu: bool) -> float:
    """Seconds, once all work handed to the device is done."""
    if on_gpu:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
