"""FastLlama's tables end to end: RACE questions asked by letter, two families, resumed cells, refusals, files."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from common import OPT
from featherweight import FeatherweightError
from featherweight.cli import main as cli
from featherweight.evaluation.fastllama import fastllama_protocol
from featherweight.integrations.load import load
from featherweight.models.source import resolve_model
from featherweight.reports.sheets import Column, Sheet, markdown, write_sheets
from featherweight.search.tables import fastllama as module
from featherweight.search.tables.fastllama import Settings, fastllama_table
from featherweight.search.tables.frame import require_models
from featherweight.search.tables.speed import fastllama_speed

RACE = [
    {
        "article": f"{name} went to the {place} in the morning and came home at night.",
        "question": f"Where did {name} go?",
        "options": ["the sea", "the hill", "the school", "the market"],
        "answer": "ABCD"[index],
    }
    for index, (name, place) in enumerate((("Tom", "sea"), ("Ann", "hill"), ("Sam", "school"), ("Mary", "market")))
]
#: Rounding to nearest in GPTQ's place, which costs a test too much time.
CHANGES = {"steps.0": {"method": "rtn", "bits": 4, "group_size": 64}}


@pytest.fixture
def race(tmp_path: Path) -> Path:
    path = tmp_path / "race.jsonl"
    path.write_text("\n".join(map(json.dumps, RACE)))
    return path


def short_speed(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The protocol in this process, on three tokens."""
    return fastllama_protocol(load(folder, dtype="float32"), prompts=1, context=8, long=3)


def sources() -> list[Any]:
    return [resolve_model("demo"), resolve_model(OPT)]


def test_both_tables_of_two_families_and_a_second_call_that_measures_nothing(
    race: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fastllama_speed", short_speed)
    settings = Settings(task=str(race), scoring="letters", bits=(4,), floor=0.9, tolerance=0.5, changes=CHANGES)
    said: list[str] = []
    sheets, paths = fastllama_table(sources(), tmp_path / "out", settings, report=said.append)
    results, limits = sheets
    assert [(record["model"], record["row"]) for record in results.records] == [
        (source.name, row) for source in sources() for row in ("dense", "4 bit", "4 bit pruned")
    ]
    for record in results.records:
        assert record["answered"]["protocol"]["rule"] == "letters, greedy" and record["answered"]["protocol"]["windows"] == 4
        assert float(record["answered"]["value"]) * 4 % 1 == 0
    dense, whole, pruned = results.records[:3]
    assert whole["file_bytes"] < dense["file_bytes"]
    head = 4096 * (230 + 26) * 2  # bfloat16; a tenth of 256 inputs, 25, goes: 231 stay
    assert 0 < pruned["file_bytes"] - whole["file_bytes"] - head * 231 / 256 < 2000
    assert all(record["largest_ratio"] is None for record in limits.records) and len(limits.records) == 4
    assert [path.name for path in paths] == ["fastllama.md", "fastllama.json", "fastllama.csv", "fastllama-limits.csv"]
    rows = list(csv.DictReader(paths[2].open()))
    assert float(rows[1]["latency.median"]) == whole["latency"]["median"] and rows[2]["ratio"] == "0.1"
    assert json.loads(paths[1].read_text())["sheets"][0]["rows"][0]["model"] == "demo"
    assert "| demo | 4 bit pruned 10 % |" in paths[0].read_text()
    assert any(line.endswith("compressing 4 bit pruned") for line in said)

    said.clear()
    again, _ = fastllama_table(sources(), tmp_path / "out", settings, report=said.append)
    assert not said and [sheet.records for sheet in again] == [sheet.records for sheet in sheets]
    shutil.rmtree(next((tmp_path / "out" / "demo").glob("4-bit-pruned-*")))
    wider = Settings(**{**vars(settings), "scoring": "likelihood", "floor": None})
    fastllama_table(sources()[:1], tmp_path / "out", wider, report=said.append)
    assert said == [
        *(f"demo: answers of {row}" for row in ("dense", "4 bit")),
        "demo: compressing 4 bit pruned",  # deleted, and needed again
        "demo: answers of 4 bit pruned",
    ]


def test_the_largest_ratio_is_between_what_holds_and_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fastllama_speed", short_speed)
    settings = Settings(questions=8, bits=(8,), floor=0.3, highest=0.95, tolerance=0.5, changes=CHANGES)
    sheets, _ = fastllama_table(sources()[:1], tmp_path / "out", settings)
    for record in sheets[1].records:
        tried = {trial["ratio"]: trial["holds"] for trial in record["tried"]}
        assert tried[0.0] and tried[record["largest_ratio"]]
        assert all(trial["holds"] == (trial["accuracy"] >= 0.3) for trial in record["tried"])
        failed = [ratio for ratio, good in tried.items() if not good]
        assert not failed or min(failed) - record["largest_ratio"] <= 0.5
    left = {path.name.rpartition("-")[0] for path in (tmp_path / "out" / "demo").iterdir()}
    assert left == {"8-bit", "8-bit-pruned"}  # trials are not kept


def test_speed_is_taken_in_a_process_of_its_own() -> None:
    told = fastllama_speed(resolve_model("demo").folder, {"prompts": 1, "context": 8, "device": "cpu", "dtype": "float32"})
    assert told["protocol"] == "fastllama" and told["context"] == 8 and told["peak_bytes"] > 10**7
    with pytest.raises(FeatherweightError, match="no model here"):
        fastllama_speed(Path("nothing"), {"prompts": 1, "context": 8, "device": "cpu", "dtype": "float32"})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bits", "3"], "4, 8"),
        (["--bits", "four"], "list of numbers"),
        (["--floor", "50"], "out of range"),
        (["--floor-on", "answered"], "scoring letters"),
        (["--task", "no-such.jsonl"], "no such questions"),
        (["--set", "steps.0.bitz=3"], "bits"),
        (["--set", "steps.1.scope=haed"], "head"),
    ],
)
def test_wrong_wishes_are_refused_before_any_work(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fw", "table", "fastllama", "demo", "-o", str(tmp_path / "out"), "--json", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = json.loads(capsys.readouterr().out)
    assert end.value.code == 2 and says in json.dumps(told) and not (tmp_path / "out").exists()


def test_models_of_one_name_are_refused() -> None:
    with pytest.raises(FeatherweightError, match="one name"):
        require_models([resolve_model("demo"), resolve_model("demo")])


def test_sheets_escape_bars_and_flatten(tmp_path: Path) -> None:
    sheet = Sheet(
        "s", "S", (Column("a|b", lambda record: record["x"]["y"], words=True),), ({"x": {"y": "1|2"}, "z": [1]},), ("n",)
    )
    assert "| a\\|b |\n| --- |\n| 1\\|2 |" in markdown(sheet)
    paths = write_sheets(tmp_path, "s", [sheet])
    assert paths[2].read_text() == "x.y,z\n1|2,[1]\n"
