"""`fw eval` through the cache: presets, an output's own cache, both forms, tasks, and what is refused."""

import json

import pytest

import featherweight as fw
from common import TINY
from featherweight.cli.main import app


def measured(capsys, *words):
    capsys.readouterr()
    app(["eval", *words, "--json"], standalone_mode=False)
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)["measurements"]}


def refused(capsys, *words):
    with pytest.raises(fw.FeatherweightError) as error:
        app(["eval", *words], standalone_mode=False)
    return str(error.value)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """An output whose configuration says how its cache is stored."""
    folder = tmp_path_factory.mktemp("cached") / "out"
    steps, keys = [{"method": "rtn", "bits": 8}], {"codec": "qjl", "window": 32, "outliers": 4}
    values = {"codec": "integer", "bits": 2, "window": 32}
    fw.compress(fw.plan("demo", {"steps": steps, "kv_cache": {"keys": keys, "values": values}}, changes=TINY), folder)
    return str(folder)


def test_an_output_is_measured_through_its_own_cache_unless_told_otherwise(cached, capsys):
    asked = (cached, "--windows", "1", "--length", "96")
    own, exact = measured(capsys, *asked, "--against", "demo"), measured(capsys, *asked, "--kv-cache", "none")
    assert own["perplexity"]["protocol"]["cache"].startswith("keys qjl(outliers 4, window 32), values integer(window 32)")
    assert own["reference_perplexity"]["protocol"]["cache"] == exact["perplexity"]["protocol"]["cache"] == "none"
    assert own["value_bits"]["value"] == 4 and own["kl"]["value"] > 0.001 and set(exact) == {"perplexity"}
    stepwise = measured(capsys, *asked, "--stepwise")
    assert stepwise["perplexity"]["value"] == pytest.approx(own["perplexity"]["value"], rel=1e-5)
    assert stepwise["perplexity"]["value"] != pytest.approx(exact["perplexity"]["value"], rel=1e-5)
    again = fw.evaluate(cached, windows=1, length=96)  # in Python likewise
    assert again[-1].value == pytest.approx(own["perplexity"]["value"])


def test_tasks_go_through_the_cache(cached, capsys):
    found = measured(capsys, cached, "--task", "recall:copy", "--length", "120", "--limit", "1")
    assert set(found) == {"recall_copy_exact", "recall_copy", "recall_copy_relative"}
    only = measured(capsys, cached, "--task", "recall:copy", "--length", "120", "--limit", "1", "--kv-cache", "none")
    assert only["recall_copy_exact"]["value"] == found["recall_copy_exact"]["value"] and len(only) == 1


def test_what_has_no_effect_or_no_meaning_is_refused(cached, capsys):
    assert "codes nothing that is read" in refused(capsys, "demo", "--kv-cache", "kivi-2", "--length", "100", "--windows", "1")
    assert "no such cache preset" in refused(capsys, "demo", "--kv-cache", "kivi")
    assert "stepwise needs a cache" in refused(capsys, "demo", "--stepwise", "--windows", "1")
    assert "was given to others" in refused(capsys, "demo", "--task", "continuation", "--kv-cache", "qjl")
    assert "no such recall task" in refused(capsys, "demo", "--task", "recall:passky")
    assert "no LongBench files" in refused(capsys, "demo", "--task", "longbench:nowhere")
