"""Comparisons: cells that are kept, the front, what does not suit a model, one protocol."""

import csv
import json
from dataclasses import replace

import pytest

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import resolve_model
from featherweight.reports.compare import Entry, require_one_protocol
from featherweight.search.compare import compare, mark_front

SMALL = {"calibration.samples": 2, "calibration.length": 64}
MEASURE = {"data": "heldout", "length": 128, "windows": 2}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("compare")
    entries, refused = compare(resolve_model("demo"), ["rtn-4bit", "gptq-4bit"], output, changes=SMALL, **MEASURE)
    return output, entries, refused


def test_one_entry_per_recipe_and_the_files(done):
    output, entries, refused = done
    assert [entry.name for entry in entries] == ["dense", "rtn-4bit", "gptq-4bit"] and not refused
    assert all({"perplexity", "kl"} <= entry.measurements.keys() for entry in entries[1:])
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["recipe"] for row in rows] == [entry.name for entry in entries]
    assert float(rows[1]["kl"]) == entries[1].measurements["kl"].value
    page = (output / "index.html").read_text()
    assert "rtn-4bit" in page and 'src="http' not in page and "viewport" in page
    size = sum(path.stat().st_size for path in (output / "gptq-4bit").glob("*.safetensors") if path.name != "probe.safetensors")
    assert entries[2].file_bytes == size


def test_a_second_call_measures_only_what_is_new(done):
    output, entries, _ = done
    said = []
    again, _ = compare(resolve_model("demo"), ["gptq-4bit", "rtn-8bit"], output, changes=SMALL, report=said.append, **MEASURE)
    assert said == ["compressing by rtn-8bit"]
    assert again[1].measurements == entries[2].measurements
    assert len(json.loads((output / "cells.json").read_text())) == 4


def test_the_front(done):
    entries = done[1]

    def made(name, size, kl):
        return Entry(name, 4.0, 6.0, size, {"kl": replace(entries[1].measurements["kl"], value=kl)})

    marked = mark_front(
        [entries[0], made("a", 10, 0.5), made("b", 20, 0.1), made("c", 20, 0.2), made("d", 30, 0.1), made("e", 5, 0.9)]
    )
    assert [entry.name for entry in marked if entry.on_front] == ["a", "b", "e"]


def test_recipes_that_do_not_suit_and_that_do_not_exist(tmp_path):
    recipe = tmp_path / "odd.yaml"
    recipe.write_text("steps: [{method: alps, pattern: '2:7'}]")
    with pytest.raises(FeatherweightError, match="multiple of 7"):
        compare(resolve_model("demo"), [str(recipe)], tmp_path / "out", **MEASURE)
    with pytest.raises(FeatherweightError, match="gptq-4bit"):
        compare(resolve_model("demo"), ["gptq-4bits"], tmp_path / "out", **MEASURE)
    with pytest.raises(FeatherweightError, match="no-such-text"):
        compare(resolve_model("demo"), ["gptq-4bit"], tmp_path / "out", data="no-such-text")
    assert not (tmp_path / "out").exists()


def test_mixed_protocols_are_refused_and_cells_read_back(done):
    entries = done[1]
    assert Entry.from_dict(json.loads(json.dumps(entries[1].as_dict()))) == replace(entries[1], on_front=entries[1].on_front)
    kl: Measurement = entries[1].measurements["kl"]
    other = replace(entries[2], measurements={"kl": replace(kl, protocol=replace(kl.protocol, context=64))})
    with pytest.raises(FeatherweightError, match="cannot share a column"):
        require_one_protocol([entries[1], other])
    assert fw.FeatherweightError is FeatherweightError
