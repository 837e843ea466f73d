"""The report of one output: what the ledger says and nothing else, experts in one column, odd values, the model card."""

import json
import re
import shutil

import pytest

import featherweight as fw
from featherweight import api
from featherweight.cli.main import app
from featherweight.errors import FeatherweightError
from featherweight.reports.heatmap import SCALE, Quantity, heatmap
from featherweight.reports.page import write_report

ERROR = Quantity("error", "error", "e", logarithmic=True, worst=True)


def row(module, **facts):
    return {"module": module, **facts}


def test_the_report_shows_the_ledger(gptq_run, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(gptq_run[1].folder, folder)
    app(["report", str(folder), "--json"], standalone_mode=False)
    page = (folder / "report.html").read_text()
    assert json.loads(capsys.readouterr().out) == {"page": str(folder / "report.html")}
    compressed = [each for each in json.loads((folder / "ledger.json").read_text())["rows"] if each["method"]]
    for each in compressed:
        assert f'title="{each["module"]}: {each["relative_error"]:.5g}"' in page
    assert f"{gptq_run[1].totals.file_bytes:,}" in page and "Not measured here" in page
    assert "<script" not in page and "http" not in re.sub(r"arXiv\S+", "", page)
    api.score(folder, ["heldout"], against="demo", windows=1)
    scored = json.loads((folder / "evaluation.json").read_text())["heldout"]
    page, card = write_report(folder).read_text(), (folder / "README.md").read_text()
    for measurement in scored:
        assert f"{measurement['value']:.5g}" in page and f"{measurement['value']:.5g}" in card
    assert "1 windows of" in page and "1 windows of" in card
    fw.verify(folder)


def test_no_finished_output(tmp_path):
    with pytest.raises(FeatherweightError, match="no ledger"):
        app(["report", str(tmp_path)], standalone_mode=False)


def test_experts_share_a_column_and_what_was_left_alone_is_empty():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up" for layer in (0, 1) for expert in range(3)]
    rows = [row(name, error=10.0**-number) for number, name in enumerate(names)]
    found = heatmap(ERROR, [*rows, row("model.layers.1.self_attn.q", error=1e-3), row("lm_head", error=9.0)])
    assert found.columns == ["up", "q"] and [layer for layer, _ in found.rows] == ["0", "1"]
    (up, q), (other, _) = found.rows[0][1], found.rows[1][1]
    assert q is None and up.text == "1.0e0" and other.text == "1.0e-3" and "3 linears, the largest" in up.title
    assert (up.colour, other.colour) == (SCALE[-1], SCALE[0]) and (found.low, found.high) == ("1.0e-3", "1.0e0")


def test_values_that_have_no_logarithm_or_no_end():
    rows = [row("h.0.a", error=0.0), row("h.1.a", error=1e-2), row("h.2.a", error=float("inf")), row("h.3.a", error=None)]
    found = heatmap(ERROR, rows)
    assert [cells[0].text for _, cells in found.rows] == ["0", "1.0e-2"]
    assert heatmap(ERROR, rows[2:]) is None
    assert heatmap(ERROR, rows[1:2]).uniform and ERROR.written(9.96e-4) == "1.0e-3"
