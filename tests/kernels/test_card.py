"""The arithmetic of the benchmarks' harness, on a CPU."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return pytest.importorskip("card")


def test_a_timing_is_of_one_call(card: Any) -> None:
    timing = card.Timing.of([1.0, 4.0, 2.0, 3.0, 5.0], calls=10)
    assert (timing.low, timing.median, timing.high, timing.replays) == (200.0, 300.0, 400.0, 5)


def test_copies_exceed_the_cache_together(card: Any) -> None:
    assert len(card.rotated(lambda index: index, 100 << 20)) == 3
    assert card.rotated(lambda index: index, 300 << 20) == [0]
    assert len(card.rotated(lambda index: index, 1)) == 512


def test_the_floor_is_read_off_the_measured_curve(card: Any) -> None:
    measured = card.Card("cpu", {}, {}, ((10.0, 2.0), (20.0, 3.0), (40.0, 7.0)))
    assert [measured.floor(size) for size in (10, 15, 30, 60)] == [2.0, 2.5, 5.0, 11.0]


def test_rows_tell_errors_and_failures_and_are_written(card: Any, tmp_path: Path) -> None:
    x, weight = torch.randn(1, 64), torch.randn(64, 64)
    out = torch.zeros(1, 64)

    def lazy() -> torch.Tensor:
        return out  # never writes, so what it returns is the poison

    def broken() -> torch.Tensor:
        raise RuntimeError("no such kernel")

    reference = x.double() @ weight.double().T
    product = partial(torch.nn.functional.linear, x, weight)
    cases = [card.Case("good", [product], weight.nbytes, 2 * 64 * 64, reference), card.Case("lazy", [lazy], 0, 0, reference)]
    rows = card.measure([*cases, card.Case("broken", [broken])], card.describe("cpu"), {"m": 1}, replays=6)
    good, unwritten, failed = rows
    assert good["error"] < 1e-6 and good["ratio"] == 1.0 and good["us"] > 0
    assert good["tb_s"] == pytest.approx(weight.nbytes / good["us"] / 1e6)
    assert unwritten["error"] != unwritten["error"], "NaN"
    assert failed["note"] == "RuntimeError: no such kernel" and "us" not in failed
    card.write_page(tmp_path, "try", "A try", card.describe("cpu"), rows)
    with (tmp_path / "try.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["good", "lazy", "broken"]
    assert "| 1 | broken |" in (tmp_path / "try.md").read_text()
