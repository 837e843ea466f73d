"""Tables for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from featherweight.evaluation.protocol import Measurement
from featherweight.planning.cache import CachePlan
from featherweight.planning.estimate import Estimate
from featherweight.planning.plan import Plan
from featherweight.planning.rows import Row, Totals

#: The number of an expert in a module's path.
_EXPERT = re.compile(r"(?<=experts)\.\d+\.")


def print_plan(plan: Plan, cost: Estimate) -> None:
    """The plan: one row per compressed weight, what is left alone summed up by reason, totals, cost."""
    console = wide_console()
    console.print(f"{plan.recipe.name} on {plan.source.name}", highlight=False)
    console.print(rows_table(row for row in plan.rows if row.chain))
    _print_reasons(console, plan.rows)
    for reason, rows in _left_alone(plan.rows).items():
        size = sum(row.bytes for row in rows)
        told = reason if rows[0].kind in ("folded", "tuned") else f"left alone, {reason}"
        console.print(f"{told}: {len(rows)} tensors, {human_bytes(size)}", highlight=False)
    _print_totals(console, plan.totals, any(row.at_most or row.shared for row in plan.rows))
    if plan.cache is not None:
        console.print(cache_line(plan.cache), highlight=False)
    console.print(
        f"cost: memory {human_bytes(cost.host_bytes)}, disk {human_bytes(cost.disk_bytes)}"
        + (f" and {human_bytes(cost.spill_bytes)} of activations while it runs, " if cost.spill_bytes else ", ")
        + f"{cost.operations / 1e12:.2f} TFLOP, about {cost.seconds:.0f} s of matrix work here",
        highlight=False,
    )


def print_result(result: Any) -> None:
    """A finished run: the same table with its measured columns."""
    console = wide_console()
    console.print(rows_table(row for row in result.rows if row.chain))
    _print_reasons(console, result.rows)
    _print_starved(console, result.rows)
    _print_totals(console, result.totals, False)
    proof = result.proof
    console.print(
        f"reloaded from disk: logits repeat within {proof['largest_difference']:.2e} (bound {proof['bound']:.0e})\n"
        f"{result.folder} in {result.seconds:.1f} s"
        + (f", of which {result.resumed} files were finished before" if result.resumed else ""),
        highlight=False,
    )


def cache_line(cache: CachePlan) -> str:
    """Codecs, bits and bytes of the cache."""
    keys, values = cache.settings.keys.name, cache.settings.values.name
    told = cache.as_dict()
    return (
        f"cache: keys {keys} {cache.key_bits:.2f} bits, values {values} {cache.value_bits:.2f} bits; "
        f"{cache.token_bytes:,.0f} bytes a token in code instead of {cache.exact_token_bytes:,}, {told['tokens_per_gib']:,} tokens per GiB"
    )


def wide_console(stderr: bool = False) -> Console:
    """The terminal as it is; 160 columns where there is none, so that a file or pipe gets whole rows."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def rows_table(rows: Iterable[Row]) -> Table:
    """One line per stored weight; one for the same linear of all experts of a mixture: bytes and seconds of all, the largest error."""
    table = Table(box=None, header_style="bold")
    for column in ("module", "method", "storage"):
        table.add_column(column, no_wrap=True)
    for column in ("bytes", "bits", "error", "damping", "seconds"):
        table.add_column(column, justify="right")
    for alike in _experts_together(rows):
        row, several = alike[0], f" ({len(alike)})" if len(alike) > 1 else ""
        size = sum(each.bytes for each in alike)
        worst = max(alike, key=lambda each: each.measured.get("relative_error") or 0.0)
        measured = dict(worst.measured)
        measured["seconds"] = sum(each.measured.get("seconds", 0.0) for each in alike) if "seconds" in measured else None
        table.add_row(
            (_EXPERT.sub(".*.", row.module, 1) if several else row.module) + several,
            "+".join(row.chain),
            row.storage,
            f"{'' if row.measured else '≤ ' if row.at_most else '≈ ' if row.shared else ''}{size:,}",
            f"{8 * size / max(sum(each.weights for each in alike), 1):.3f}",
            _error(measured),
            _number(measured.get("damping"), ".3g"),
            _number(measured["seconds"], ".2f"),
        )
    return table


def _experts_together(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows, those that differ in the number of the expert alone in one list, where the first of them is."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((_EXPERT.sub(".*.", row.module, 1), row.chain, row.storage), []).append(row)
    return list(groups.values())


def print_measurements(model: str, measurements: Iterable[Measurement]) -> None:
    """Each number with its standard error, under the protocol it was taken by."""
    console = wide_console()
    shown: set[str] = set()
    for measurement in measurements:
        protocol = measurement.protocol.describe()
        if protocol not in shown:
            console.print(f"{model}: {protocol}", highlight=False)
            shown.add(protocol)
        value = with_error(measurement.value, measurement.stderr, ".5g")
        if measurement.name.endswith("_relative") and math.isnan(measurement.value):
            value = "not countable: the exact cache itself does not do the task"
        console.print(f"  {measurement.name:28} {value}", highlight=False)


def print_shrunk(result: Any) -> None:
    """What `fw shrink` made."""
    (before, after), (large, small) = result.parameters, result.file_bytes
    lines = [
        f"parameters {before:,} -> {after:,} ({after / before:.1%}), "
        f"weight files {human_bytes(large)} -> {human_bytes(small)} ({small / large:.1%})"
    ]
    for kind, (count, left) in result.widths.items():
        shown = str(left[0]) if len(set(left)) == 1 else ", ".join(map(str, left))
        lines.append(f"{kind.replace('_', ' ').replace('kv', 'KV')} of every block {count} -> {shown}")
    if result.removed:
        gone = ", ".join(f"{block} ({result.influence[block]:.4f})" for block in result.removed)
        lines.append(f"blocks removed, with 1 - cosine of input and output: {gone}")
    if result.ordinary:
        lines.append(f"reloaded by transformers alone: logits repeat within {result.largest_difference:.2e}")
    else:
        lines.append(f"reloaded after `import featherweight`: logits repeat within {result.largest_difference:.2e}")
        lines.append("not an ordinary checkpoint: transformers alone cannot load it, and no recipe goes on from it")
    files = f", of which {result.resumed} files were finished before" if result.resumed else ""
    lines.append(f"{result.folder} in {result.seconds:.1f} s{files}")
    wide_console().print("\n".join(lines), highlight=False)


def with_error(value: float, stderr: float | None, form: str) -> str:
    """`171 ± 18`: both to the error's second significant digit; from a million on `2.64e+06 ± 6.1e+05`, so too for tiny errors.

    Args:
        value, stderr: a number and its standard error, None if it has none.
        form: of the value where the error says no digit: none, zero, or not finite; with a % both are shown in percent.
    """
    if stderr is None:
        return format(value, form)
    percent = "%" if form.endswith("%") else ""
    if not (math.isfinite(value) and math.isfinite(stderr) and stderr > 0):
        return f"{format(value, form).removesuffix('%')} ± {stderr * 100 if percent else stderr:.2g}{percent}"
    value, stderr = (100 * value, 100 * stderr) if percent else (value, stderr)
    place = int(f"{stderr:.1e}".partition("e")[2]) - 1  # power of ten of the error's second digit
    if abs(value) >= 1e6 or place < -8:
        digits = max(int(f"{value:e}".partition("e")[2]) - place, 0)
        return f"{value:.{digits}e} ± {stderr:.1e}{percent}"
    shown, error = (format(round(each, -place) + 0.0, f".{max(-place, 0)}f") for each in (value, stderr))  # + 0.0: no "-0"
    return f"{shown} ± {error}{percent}"


def human_bytes(size: float) -> str:
    """Bytes in the largest binary unit that keeps a digit before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _print_totals(console: Console, totals: Totals, at_most: bool) -> None:
    bound = "≤ " if at_most else ""
    nominal = "" if totals.nominal_bits is None else f" (nominal, as the paper counts: {totals.nominal_bits:.3f})"
    compressed = f"compressed weights {bound}{totals.linear_bits:.3f} bits each{nominal}, " if totals.linear_bits else ""
    console.print(
        f"{compressed}whole model {bound}{totals.model_bits:.3f} bits a weight; "
        f"tensors {human_bytes(totals.original_bytes)} -> {bound}{human_bytes(totals.predicted_bytes)}; "
        f"weight files {bound}{totals.file_bytes:,} bytes",
        highlight=False,
    )


def _print_reasons(console: Console, rows: Iterable[Row]) -> None:
    """Who shares a compressed weight, from what it was untied, or which maps of its input it takes."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.chain and row.reason:
            groups.setdefault(row.reason, []).append(row)
    for reason, alike in groups.items():
        more = f" and {len(alike) - 1} like it" if len(alike) > 1 else ""
        console.print(f"{alike[0].module}{more}: {reason}", highlight=False)


def _print_starved(console: Console, rows: Iterable[Row]) -> None:
    """How many experts were not calibrated on their own tokens."""
    seen = {row.module.rpartition(".")[0]: row.measured for row in rows if "calibrated_on" in row.measured}
    starved = [measured["tokens"] for measured in seen.values() if measured["calibrated_on"] != "its own tokens"]
    if starved:
        console.print(
            f"{len(starved)} of {len(seen)} experts saw too few tokens ({min(starved)} to {max(starved)}) and were calibrated on all "
            "tokens of their block", highlight=False,
        )  # fmt: skip


def _left_alone(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if not row.chain:
            groups.setdefault(row.reason, []).append(row)
    return groups


def _error(measured: Mapping[str, Any]) -> str:
    """Relative error of the outputs; of the weights, marked w, where no activations were seen."""
    if measured.get("relative_error") is not None:
        return f"{measured['relative_error']:.2e}"
    return f"{measured['relative_weight_error']:.2e} w" if "relative_weight_error" in measured else ""


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
