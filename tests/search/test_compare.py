"""Comparisons: results that are kept by group, the front, what does not suit a model, one protocol, the page."""

import csv
import json
from dataclasses import replace

import pytest

from featherweight.cli.main import app
from featherweight.errors import FeatherweightError
from featherweight.models.source import resolve_model
from featherweight.planning.recipe import load_recipe
from featherweight.reports.compare import Entry, front, mark_front, require_one_protocol
from featherweight.reports.compare_page import write_page
from featherweight.search.compare import compare
from featherweight.search.trial import Questionnaire

SMALL = {"calibration.samples": 2, "calibration.length": 64}
ASKED = Questionnaire("heldout", length=128, windows=2, speed=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("compare")
    entries, refused = compare(resolve_model("demo"), ["rtn-4bit", "gptq-4bit"], output, changes=SMALL, asked=ASKED)
    return output, entries, refused


def test_one_entry_per_recipe_and_the_files(done):
    output, entries, refused = done
    assert [entry.name for entry in entries] == ["dense", "rtn-4bit", "gptq-4bit"] and not refused
    assert [entry.family for entry in entries] == ["dense", "rtn", "gptq"]
    assert all({"perplexity", "kl"} <= entry.measurements.keys() and entry.seconds for entry in entries[1:])
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["recipe"] for row in rows] == [entry.name for entry in entries]
    assert float(rows[1]["kl"]) == entries[1].measurements["kl"].value and rows[0]["kl"] == rows[0]["seconds"] == ""
    size = sum(path.stat().st_size for path in (output / "gptq-4bit").glob("*.safetensors") if path.name != "probe.safetensors")
    assert entries[2].file_bytes == size


def test_a_second_call_makes_and_measures_only_what_is_new(done):
    output, entries, _ = done
    said = []
    more = replace(ASKED, task="continuation", questions=3, speed=True)
    recipes = ["gptq-4bit", "rtn-8bit"]
    again, _ = compare(resolve_model("demo"), recipes, output, changes=SMALL, asked=more, report=said.append)
    assert [line for line in said if "gptq" in line or "dense" in line] == [
        "asking dense the questions of continuation",
        "timing dense",
        "asking gptq-4bit the questions of continuation",
        "timing gptq-4bit",
    ]
    assert "compressing by rtn-8bit" in said
    assert again[1].measurements["kl"] == entries[2].measurements["kl"]
    assert all("accuracy" in entry.measurements and entry.tokens_per_second > 0 for entry in again)
    said.clear()
    same, _ = compare(resolve_model("demo"), recipes, output, changes=SMALL, asked=more, report=said.append)
    assert said == [] and same == again
    assert "one sequence behind" in (output / "index.html").read_text()


def test_the_front(done):
    entries = done[1]

    def made(name, size, kl, bits=4.0):
        return Entry(name, bits, 6.0, size, {"kl": replace(entries[1].measurements["kl"], value=kl)})

    several = [made("a", 10, 0.5), made("b", 20, 0.1, 3.0), made("c", 20, 0.2), made("d", 30, 0.1), made("e", 5, 0.9)]
    assert [entry.name for entry in mark_front([entries[0], *several]) if entry.on_front] == ["a", "b", "e"]
    assert [entry.name for entry in front(several, lambda entry: entry.bits)] == ["b"]


def test_what_does_not_suit_is_left_out_with_its_reason_and_what_does_not_exist_is_an_error(tmp_path):
    recipe = tmp_path / "odd.yaml"
    recipe.write_text("steps: [{method: alps, pattern: '2:7'}]")
    source, output = resolve_model("demo"), tmp_path / "out"
    wrong = [
        ([str(recipe)], ASKED, "multiple of 7"),
        (["gptq-4bits"], ASKED, "gptq-4bit"),
        (["gptq-4bit"], Questionnaire("no-such-text"), "no-such-text"),
        (["gptq-4bit"], replace(ASKED, task="no-such-task"), "no-such-task"),
        ([load_recipe("rtn-4bit"), load_recipe("rtn-4bit").with_changes({"seed": 1})], ASKED, "one name"),
    ]
    for recipes, asked, message in wrong:
        with pytest.raises(FeatherweightError, match=message):
            compare(source, recipes, output, asked=asked)
    assert not output.exists()
    odd = load_recipe({"name": "odd", "steps": [{"method": "alps", "pattern": "2:7"}]})
    entries, refused = compare(source, ["rtn-4bit", odd], output, asked=ASKED)
    assert [entry.name for entry in entries] == ["dense", "rtn-4bit"] and refused.keys() == {"odd"}
    assert refused["odd"] in (output / "index.html").read_text()


def test_mixed_protocols_are_refused(done):
    entries = done[1]
    kl = entries[1].measurements["kl"]
    other = replace(entries[2], measurements={"kl": replace(kl, protocol=replace(kl.protocol, context=64))})
    with pytest.raises(FeatherweightError, match="cannot share a column"):
        require_one_protocol([entries[1], other])


def test_the_page_stands_alone_and_can_be_read_without_script(done, tmp_path):
    entries = done[1]
    exact = replace(entries[1].measurements["kl"], value=0.0)
    broken = replace(exact, value=float("inf"))
    entries = [*entries, replace(entries[1], name="<lossless>", measurements={"kl": exact})]
    entries.append(replace(entries[1], name="broken", measurements={"kl": broken}))
    assert not mark_front(entries)[-1].on_front
    write_page(tmp_path / "index.html", "a & b", entries, left_out={"none": "no reason"}, notes=["a note"])
    page = (tmp_path / "index.html").read_text()
    assert "a &amp; b" in page and "<lossless>" not in page and 'src="http' not in page and "viewport" in page
    picture = page.split("<noscript>")[1].split("</noscript>")[0]
    assert picture.count("<title>") == 3 and "&lt;lossless&gt;" in picture and "NaN" not in picture
    assert "rtn-4bit" in page.split("<tbody>")[1] and "a note" in page and "no reason" in page


def test_the_verb(tmp_path, capsys):
    words = ["--recipes", "rtn-4bit", "--windows", "1", "--eval-length", "64", "--no-speed", "--json"]
    app(["compare", "demo", *words, "-o", str(tmp_path / "out")], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in result["models"]] == ["dense", "rtn-4bit"] and result["left_out"] == {}
    assert result["models"][1]["methods"] == ["rtn"] and result["models"][1]["tokens_per_second"] is None
    with pytest.raises(FeatherweightError, match="--task"):
        app(["compare", "demo", "--questions", "3", "-o", str(tmp_path / "out")], standalone_mode=False)


def test_a_recipe_that_compresses_the_cache_is_left_out(tmp_path):
    with pytest.raises(FeatherweightError, match="no recipe suits") as error:
        compare(resolve_model("demo"), ["sparseqjl"], tmp_path, changes=SMALL, asked=ASKED)
    assert "compresses the cache" in str(error.value)
