"""How FastLlama's two tables are shown."""

from __future__ import annotations

from collections.abc import Sequence

from featherweight.evaluation.protocol import Measurement
from featherweight.reports.sheets import Column, Record, Sheet

#: Shares that a task gives, with their titles.
SHARES = {
    "answered": "answered",
    "accuracy_answered": "right of answered",
    "accuracy": "accuracy",
    "accuracy_per_character": "accuracy per character",
}


def results_sheet(records: Sequence[Record]) -> Sheet:
    """The first table: speed, memory, accuracy, bits and bytes of every line of every model."""
    shares = [name for name in SHARES if name in records[0]]
    columns = (
        Column("model", lambda record: str(record["model"]), words=True),
        Column("row", _row, words=True),
        Column("latency ms", lambda record: _spread(record["latency"], 1e3, ".2f")),
        Column("tokens/s", lambda record: _spread(record["tokens_per_second"], 1.0, ".1f")),
        Column("peak GB", lambda record: f"{record['peak_bytes'] / 1e9:.2f}"),
        *(Column(SHARES[name], lambda record, name=name: _share(record[name])) for name in shares),  # type: ignore[misc]
        Column("bits/weight", lambda record: f"{record['bits_per_weight']:.3f}"),
        Column("whole model", lambda record: f"{record['model_bits_per_weight']:.3f}"),
        Column("file bytes", lambda record: f"{record['file_bytes']:,}"),
    )
    one = records[0]
    memory = (
        "of a process with this model alone, libraries included" if one["device"].startswith("cpu") else "allocated on the GPU"
    )
    protocols = {Measurement.from_dict(record[name]).protocol.describe() for record in records for name in shares}
    notes = (
        f"Latency: one token with its prompt; tokens/s: (101 - 1) / (time for 101 tokens - latency); medians over {one['prompts']} "
        f"random prompts of {one['context']} tokens, 20th to 80th percentile; {one['device']}, {one['dtype']}.",
        f"Peak: of five generations of 101 tokens, {memory}, in units of 10^9 bytes.",
        *(f"Questions: {protocol}; ± one standard error." for protocol in sorted(protocols)),
        "Bits: everything stored, over the compressed weights, and over all weights of the original model.",
    )
    return Sheet("fastllama", "Speed, memory and accuracy", columns, tuple(records), notes)


def limits_sheet(records: Sequence[Record], floor: float, of: str) -> Sheet:
    """The second table: the largest ratio that keeps accuracy, and what was tried."""
    columns = (
        Column("model", lambda record: str(record["model"]), words=True),
        Column("quantization", lambda record: str(record["quantization"]), words=True),
        Column("pruned", lambda record: f"{record['dimension']}s", words=True),
        Column("largest ratio", _largest),
        Column("accuracy there", _accuracy_there),
        Column("tried", lambda record: ", ".join(map(_tried, record["tried"]))),
    )
    notes = (
        f"Ratio by bisection, as if accuracy (of {of} questions) only fell; every ratio tried is shown with its accuracy.",
        "A floor within two standard errors of an accuracy is not a measured limit: more questions are.",
    )
    return Sheet("fastllama-limits", f"Largest ratio that keeps an accuracy of {floor:.1%}", columns, tuple(records), notes)


def _row(record: Record) -> str:
    return str(record["row"]) if record["ratio"] is None else f"{record['row']} {100 * record['ratio']:g} %"


def _spread(values: dict[str, float], factor: float, form: str) -> str:
    median, low, high = (format(factor * values[name], form) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _share(stored: Record) -> str:
    found = Measurement.from_dict(stored)
    return f"{found.value:.1%}" + ("" if found.stderr is None else f" ± {found.stderr:.1%}")


def _largest(record: Record) -> str:
    return "none: below the floor unpruned" if record["largest_ratio"] is None else f"{100 * record['largest_ratio']:.1f} %"


def _accuracy_there(record: Record) -> str:
    at = record["largest_ratio"] or 0.0
    trial = next(trial for trial in record["tried"] if trial["ratio"] == at)
    return f"{trial['accuracy']:.1%}" + ("" if trial["stderr"] is None else f" ± {trial['stderr']:.1%}")


def _tried(trial: Record) -> str:
    return f"{100 * trial['ratio']:.1f} %: {trial['accuracy']:.1%}"
