"""The sheets of PQP's table: perplexities against the best baseline, and answers to questions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from featherweight.evaluation.protocol import Measurement
from featherweight.reports.sheets import Column, Record, Sheet

#: Finished cells by model and row.
Found = Mapping[tuple[str, str], Record]


def text_sheet(
    text: str, models: Sequence[str], rows: Sequence[str], baselines: Collection[str], found: Found, notes: tuple[str, ...]
) -> Sheet:
    """Perplexity, divergence, bits and seconds on one text; rows that are no baselines against the best one of their column."""
    records = []
    for row in rows:
        columns: Record = {}
        for model in models:
            cell = found[model, row]
            best = min((_perplexity(found[model, name], text) for name in baselines if name in rows), default=None)
            compared = best is not None and row not in baselines and row != "dense"
            change = _perplexity(cell, text) / best - 1 if compared and best else None
            plain = {key: cell[key] for key in cell if key not in ("texts", "tasks")}
            columns[model] = {**plain, **cell["texts"][text], "change": change}
        records.append({"row": row, **columns})
    shown = [_row_column()]
    for model in models:
        shown.append(Column(model, lambda record, model=model: _shown(record[model])))  # type: ignore[misc]
        shown.append(Column("KL", lambda record, model=model: _divergence(record[model])))  # type: ignore[misc]
        shown.append(Column("bits", lambda record, model=model: f"{record[model]['bits_per_weight']:.3f}"))  # type: ignore[misc]
        shown.append(Column("seconds", lambda record, model=model: _seconds(record[model])))  # type: ignore[misc]
    protocol = Measurement.from_dict(records[0][models[0]]["perplexity"]).protocol.describe()
    said = (
        f"Perplexity, {protocol}; ↓ and ↑: against the column's best of {', '.join(baselines)}. KL to the dense model, nats a token.",
        "Bits: everything stored, masks and scales too, over the compressed weights. The dense row's are the checkpoint's.",
        "Seconds of compressing, calibration included; none where a run went on with another's files.",
    )
    return Sheet("", f"Pruned and rounded: {text}", tuple(shown), tuple(records), (*said, *notes))


def tasks_sheet(models: Sequence[str], rows: Sequence[str], found: Found, notes: tuple[str, ...]) -> Sheet:
    """Accuracy of every task, and of every set its mean; models side by side."""
    records = tuple({"row": row, **{model: found[model, row]["tasks"] for model in models}} for row in rows)
    names = [name for name in records[0][models[0]] if name.rpartition("/")[2] in ("acc", "accuracy")]
    shown = [_row_column()]
    for model in models:
        for name in names:
            title = name if len(models) == 1 else f"{model}: {name}"
            shown.append(Column(title, lambda record, model=model, name=name: _accuracy(record[model][name])))  # type: ignore[misc]
    asked = [Measurement.from_dict(records[0][models[0]][name]).protocol.describe() for name in names]
    return Sheet("", "Pruned and rounded: questions answered", tuple(shown), records, (*dict.fromkeys(asked), *notes))


def task_name(measurement: Measurement) -> str:
    """`TASK/METRIC`: lm-eval's are named so, ours by their set of questions."""
    return measurement.name if measurement.protocol.harness else f"{measurement.protocol.corpus}/{measurement.name}"


def _row_column() -> Column:
    return Column("method", lambda record: str(record["row"]), words=True)


def _perplexity(cell: Record, text: str) -> float:
    return float(cell["texts"][text]["perplexity"]["value"])


def _shown(cell: Record) -> str:
    change = cell["change"]
    arrow = "" if change is None else f" ({'↓' if change < 0 else '↑'}{abs(change):.1%})"
    found = Measurement.from_dict(cell["perplexity"])
    return f"{found.value:.2f} ± {found.stderr or 0:.2f}{arrow}"


def _divergence(cell: Record) -> str:
    return f"{cell['kl']['value']:.4f} ± {cell['kl']['stderr'] or 0:.4f}" if "kl" in cell else ""


def _seconds(cell: Record) -> str:
    return "" if cell["seconds"] is None else f"{cell['seconds']:.0f}"


def _accuracy(measured: Record) -> str:
    found = Measurement.from_dict(measured)
    return f"{found.value:.1%}" + ("" if found.stderr is None else f" ± {found.stderr:.1%}")
