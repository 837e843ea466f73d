"""Numbers carry how they were taken, and tables refuse to mix."""

import json
import math
from dataclasses import replace

import pytest

from featherweight.errors import FeatherweightError
from featherweight.evaluation import Measurement, MeasurementTable, Protocol

PROTOCOL = Protocol("wikitext2", "a" * 64, "b" * 64, context=2048, windows=24)


def test_describe_says_everything_a_reader_compares():
    told = replace(PROTOCOL, variant="new", against="c" * 64).describe()
    for words in (
        "wikitext2 (new)",
        "24 windows of 2048",
        "joined by '\\n\\n'",
        "BOS none",
        "cache none",
        "float32",
        "against cccc",
    ):
        assert words in told
    assert "crops of documents" in replace(PROTOCOL, rule="documents", joining=None).describe()
    task = replace(PROTOCOL, harness="lm-eval 0.4.13", task_version="1.0", rule="likelihood", fewshot=5, limit=100)
    assert "24 questions (limit 100) by likelihood, 5-shot, float32, lm-eval 0.4.13, version 1.0" in task.describe()


def test_a_measurement_is_plain_json():
    told = json.loads(json.dumps(Measurement("perplexity", 5.47, 0.1, PROTOCOL).as_dict()))
    assert list(told) == ["name", "value", "stderr", "protocol"]
    assert Protocol(**told["protocol"]) == PROTOCOL
    json.dumps(Measurement("perplexity", math.inf, None, PROTOCOL).as_dict(), allow_nan=False)


def test_one_protocol_fills_a_table():
    table = MeasurementTable()
    table.add("dense", [Measurement("perplexity", 5.47, 0.1, PROTOCOL)])
    table.add(
        "gptq", [Measurement("perplexity", 5.6, 0.1, PROTOCOL), Measurement("kl", 0.02, None, replace(PROTOCOL, against="d"))]
    )
    assert (table.rows, table.columns) == (["dense", "gptq"], ["perplexity", "kl"])
    assert table.get("dense", "kl") is None
    assert table.get("gptq", "perplexity").value == 5.6
    assert table.protocol("kl").against == "d"
    assert table.as_dict()["rows"]["dense"] == {"perplexity": {"value": 5.47, "stderr": 0.1}}


OTHERS = {
    "corpus": "c4",
    "corpus_sha256": "e",
    "tokens_sha256": "f",
    "context": 4096,
    "windows": 8,
    "rule": "documents",
    "joining": " ",
    "variant": "new",
    "bos": "first window only",
    "cache": "qjl",
    "dtype": "bfloat16",
    "against": "g",
    "harness": "lm-eval 0.4.9",
    "task_version": "2.0",
    "task_sha256": "h",
    "fewshot": 5,
    "limit": 100,
}


@pytest.mark.parametrize("field", list(PROTOCOL.as_dict()))
def test_any_other_field_keeps_a_number_out_of_the_column(field):
    table = MeasurementTable()
    table.add("one", [Measurement("perplexity", 5.47, None, PROTOCOL)])
    other = Measurement("perplexity", 5.12, None, replace(PROTOCOL, **{field: OTHERS[field]}))
    with pytest.raises(FeatherweightError, match="perplexity of two and of one were taken differently") as caught:
        table.add("two", [Measurement("kl", 0.1, None, PROTOCOL), other])
    assert caught.value.found == f"{field} {OTHERS[field]!r}"
    assert (table.rows, table.columns) == (["one"], ["perplexity"])


def test_a_cell_is_filled_once():
    table, measured = MeasurementTable(), Measurement("perplexity", 5.47, None, PROTOCOL)
    with pytest.raises(FeatherweightError, match="given twice"):
        table.add("one", [measured, measured])
    table.add("one", [measured])
    with pytest.raises(FeatherweightError, match="already in the table"):
        table.add("one", [measured])
