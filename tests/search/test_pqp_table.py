"""PQP's table on the embedded model: rows, arrows, resuming, errors."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.models.source import resolve_model
from featherweight.search.tables.pqp import Settings, pqp_table

TINY = {"calibration.samples": 2, "calibration.length": 64, "calibration.batch_size": 1}


def test_rows_arrows_and_going_on(tmp_path):
    settings = Settings(texts=("heldout",), windows=1, length=128, rows=("wanda", "row-wise"), changes=TINY)
    said: list[str] = []
    sheets, paths = pqp_table([resolve_model("demo")], tmp_path, settings, report=said.append)
    dense, wanda, ours = sheets[0].records
    assert [record["row"] for record in sheets[0].records] == ["dense", "Wanda", "PQP (row-wise)"]
    expected = ours["demo"]["perplexity"]["value"] / wanda["demo"]["perplexity"]["value"] - 1
    assert ours["demo"]["change"] == pytest.approx(expected) and wanda["demo"]["change"] is None is dense["demo"]["change"]
    assert ours["demo"]["bits_per_weight"] == pytest.approx(3.078, abs=0.001) and ours["demo"]["kl"]["value"] > 0
    assert ("↓" if expected < 0 else "↑") in paths[0].read_text()
    before = len(said)
    again, _ = pqp_table([resolve_model("demo")], tmp_path, settings, report=said.append)
    assert again[0].records == sheets[0].records and len(said) == before


def test_a_pattern_and_questions(tmp_path):
    settings = Settings(
        texts=("heldout",), windows=1, length=128, rows=("wanda", "besa"), pattern="4:8", tasks=("continuation",), questions=4,
        changes=TINY,
    )  # fmt: skip
    sheets, paths = pqp_table([resolve_model("demo")], tmp_path, settings)
    assert [[record["row"] for record in sheet.records] for sheet in sheets] == [["dense", "Wanda"]] * 2
    assert sheets[0].records[1]["demo"]["seconds"] > 0 and sheets[0].records[0]["demo"]["seconds"] is None
    assert "Not there: " in sheets[0].notes[-1] and "BESA" in sheets[0].notes[-1]
    assert sheets[1].columns[1].title == "continuation/accuracy" and "%" in sheets[1].cells()[1][1]
    assert [path.name for path in paths] == ["pqp.md", "pqp.json", "pqp.csv", "pqp-2.csv"]


def test_errors(tmp_path):
    with pytest.raises(FeatherweightError, match="no row that was chosen can have this pattern"):
        pqp_table([resolve_model("demo")], tmp_path, Settings(pattern="2:4", rows=("pqp",)))
    for wrong, message in (
        ({"pattern": "row"}, "leave --pattern out"),
        ({"pattern": "2:4", "ratio": 0.3}, "contradict"),
        ({"questions": 3}, "--task"),
    ):
        with pytest.raises(FeatherweightError, match=message):
            Settings(**wrong)
    for settings, message in (({"rows": ("best",)}, "no such row"), ({"texts": ("no-such-text",)}, "no-such-text")):
        with pytest.raises(FeatherweightError, match=message):
            pqp_table([resolve_model("demo")], tmp_path, Settings(**settings))
    with pytest.raises(FeatherweightError, match="nothing to measure on"):
        Settings(texts=())
