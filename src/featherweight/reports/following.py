"""What runs give their trackers: `fw compress` curves over blocks while it goes, `fw bench` its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from featherweight.planning.plan import Plan
from featherweight.reports.tracking import Run

_FILES = ("recipe.yaml", "plan.json", "ledger.json")


class Told(Protocol):
    """What is read of an engine's event."""

    @property
    def stage(self) -> str:
        """What happened."""

    @property
    def block(self) -> str:
        """Path of the block."""

    @property
    def linear(self) -> str:
        """For "compressed"."""

    @property
    def measured(self) -> Mapping[str, Any]:
        """For "compressed": the row's measured columns."""


class Follower:
    """A listener for `compress`: per block, `block/error`, `/bits`, `/seconds`, and the same of each linear by its role.

    The step is the block's place in the model; `self_attn.q_proj/error` is one curve over all blocks. Means over a block are
    weighted by weights. Blocks that an earlier, killed run had finished follow at the end.

    Args:
        plan: of the run.
        run: where the numbers go.
        draw: another listener, which hears every event first.
    """

    def __init__(self, plan: Plan, run: Run, draw: Callable[[Any], None] = lambda event: None) -> None:
        self._run, self._draw = run, draw
        self._places = {block: place for place, block in enumerate(plan.stages[1:])}
        self._rows = {row.module: row for row in plan.rows if row.chain}
        self._measured: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._finished: set[str] = set()

    def __call__(self, event: Told) -> None:
        """Hear an event."""
        self._draw(event)
        if event.stage == "compressed":
            self._linear(event.block, event.linear, event.measured)
        elif event.stage == "block written":
            self._block(event.block)

    def finish(self, result: Any) -> None:
        """What was not heard, the totals and the files of a finished `Result`."""
        for row in result.rows:
            if row.chain and row.block not in self._places:
                self._run.totals({f"{row.module}/{name}": value for name, value in _numbers(row.weights, row.measured).items()})
            elif row.chain and row.module not in self._measured.get(row.block, {}):
                self._linear(row.block, row.module, row.measured)
        for block in [block for block in self._measured if block not in self._finished]:
            self._block(block)
        self._run.totals({f"total/{name}": value for name, value in vars(result.totals).items()})
        self._run.totals({"total/seconds": result.seconds, "total/largest_difference": result.proof["largest_difference"]})
        self._run.attach(*(result.folder / name for name in _FILES))

    def _linear(self, block: str, module: str, measured: Mapping[str, Any]) -> None:
        self._measured.setdefault(block, {})[module] = measured
        role = module.removeprefix(f"{block}.")
        numbers = _numbers(self._rows[module].weights, measured)
        self._run.point("block", self._places[block], {f"{role}/{name}": value for name, value in numbers.items()})

    def _block(self, block: str) -> None:
        self._finished.add(block)
        rows = [(self._rows[module].weights, measured) for module, measured in self._measured.get(block, {}).items()]
        if not rows:
            return
        weights = sum(size for size, _ in rows)
        means: dict[str, float | None] = {"block/seconds": sum(measured["seconds"] for _, measured in rows)}
        for name in ("error", "weight_error", "bits"):
            values = [(size, _numbers(size, measured)[name]) for size, measured in rows]
            known = [(size, value) for size, value in values if value is not None]
            means[f"block/{name}"] = sum(size * value for size, value in known) / weights if len(known) == len(rows) else None
        self._run.point("block", self._places[block], means)


def _numbers(weights: int, measured: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        "error": measured.get("relative_error"),
        "weight_error": measured.get("relative_weight_error"),
        "bits": 8 * measured["stored_bytes"] / weights,
        "sparsity": measured.get("sparsity"),
        "seconds": measured.get("seconds"),
    }


def speed_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `fw bench` by name: `batch 1 context 128/decode_ms`, or those of the fastllama protocol."""
    if "timings" not in result:
        return {
            "latency_ms": 1e3 * result["latency"]["median"],
            "tokens_per_second": result["tokens_per_second"]["median"],
            "peak_bytes": result["peak_bytes"],
        }
    numbers = {name: result[name] for name in ("weight_bytes", "copy_bytes_per_second")}
    for timing in result["timings"]:
        label = f"batch {timing['batch']} context {timing['context']}"
        numbers |= {f"{label}/{name}_ms": 1e3 * timing[name]["median"] for name in ("prefill", "decode")}
        numbers |= {f"{label}/{name}": timing[name] for name in ("tokens_per_second", "bandwidth_fraction", "peak_bytes")}
    return numbers
