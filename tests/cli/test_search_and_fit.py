"""`fw search` and `fw plan --fit`: the JSON contract, the tables, and wrong wishes."""

from __future__ import annotations

import json
import sys

import pytest

from featherweight.cli import main as cli


@pytest.fixture
def fw_call(capsys, monkeypatch):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fw", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return call


def test_search_says_the_same_in_json_and_in_words(fw_call, tmp_path):
    words = (
        "search",
        "demo",
        "-r",
        "magnitude-50",
        "--maximize",
        "smallness",
        "--subject-to",
        "bytes <= 7MB",
        "--tolerance",
        "0.5",
    )
    words = (*words, "--subject-to", "kl(heldout) <= 100", "--windows", "1", "--eval-length", "64", "-o", str(tmp_path / "out"))
    code, out, err = fw_call(*words, "--json")
    found = json.loads(out)
    assert code == 0 and found["best"]["value"] == 0.9 and found["best"]["bytes"] <= 7e6
    assert found["trials"][0]["unchecked"] == ["kl(heldout)"] and "steps.0.ratio=0.9: bytes" in err
    assert found == {**json.loads((tmp_path / "out" / "search.json").read_text()), "seconds": found["seconds"]}
    code, out, _ = fw_call(*words)
    assert code == 0 and "steps.0.ratio=0.9" in out and "made 0 models and 0 measurements" in out
    code, out, _ = fw_call(*words, "--subject-to", "bits <= 1", "--json")
    problem = json.loads(out)
    assert code == 2 and "bits" in problem["found"] and "harsher" in problem["fix"]


def test_fit_lists_recipes(fw_call):
    words = ("plan", "demo", "--fit", "1GiB", "--context", "1k", "-r", "rtn-4bit,gptq-2bit")
    code, out, _ = fw_call(*words, "--json")
    told = json.loads(out)
    assert code == 0 and told["context"] == 1024 and told["limit"] == 2**30
    by_name = {each["recipe"]: each for each in told["recipes"]}
    assert list(by_name) == ["dense", "rtn-4bit", "gptq-2bit"]
    assert by_name["gptq-2bit"]["weights"] < by_name["rtn-4bit"]["weights"] < by_name["dense"]["weights"]
    assert all(each["left"] == 2**30 - each["total"] and each["fits"] for each in told["recipes"])
    code, out, _ = fw_call(*words)
    assert code == 0 and "quality is not measured" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "demo", "--context", "4k"), "--fit"),
        (("plan", "demo", "--fit", "much"), "8GiB"),
        (("plan", "demo", "--fit", "8GiB", "--context", "4k"), "2048"),
        (("plan", "demo", "--fit", "8GiB", "--device", "tpu"), "cuda"),
        (("plan", "demo", "--fit", "8GiB", "-r", "rtn-5bit"), "rtn-4bit"),
        (("plan", "demo", "--fit", "1MB", "-r", "rtn-4bit"), "the smallest"),
        (("search", "demo", "-o", "out", "--maximize", "sparsity", "--subject-to", "acuracy(x) >= 1"), "accuracy"),
        (("search", "demo", "-o", "out", "--maximize", "speed", "--subject-to", "bits <= 1"), "smallness"),
        (("search", "demo", "-o", "out", "--maximize", "sparsity"), "subject-to"),
        (("search", "demo", "-o", "out", "-r", "rtn-4bit", "--maximize", "sparsity", "--subject-to", "bits <= 1"), "ratio"),
    ],
)
def test_wrong_wishes_are_explained(fw_call, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = fw_call(*words, "--json")
    assert code == 2 and says in " ".join(json.loads(out).values())
    assert not (tmp_path / "out").exists()
