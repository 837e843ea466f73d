"""RACE by school: from the hub's cache, from local copies, and what is said when neither is there."""

import json

import datasets
import pytest

from common import hub_cache
from featherweight.data.choices import RACE_SETS, is_own, load_questions
from featherweight.errors import FeatherweightError
from featherweight.integrations.lm_eval import find_tasks

ROWS = [
    {"example_id": "high1.txt", "article": "Tom has a dog.\u2028It barks.", "answer": "B", "question": "What has Tom?",
     "options": ["a cat", "a dog", "a cow", "a hen"]},
    {"example_id": "high2.txt", "article": "It rains.", "answer": "C", "question": "It _ .",
     "options": ["snows", "hails", "rains", "shines"]},
]  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_each_school_comes_from_the_hub_cache(hub):
    files = {RACE_SETS["race-high"]: ROWS, RACE_SETS["race-middle"]: ROWS[:1]}
    hub_cache(hub, "ehovy/race", files, revision="refs/convert/parquet")
    high, middle = (load_questions(name, offline=True) for name in ("race-high", "race-middle"))
    assert (high.name, len(high.items), len(middle.items)) == ("race-high", 2, 1)
    first = high.items[0]
    assert (first.context, first.question, first.choices[1]) == (ROWS[0]["article"], "What has Tom?", "a dog")
    assert [item.answer for item in high.items] == [1, 2] and high.sha256 != middle.sha256
    own, harness = find_tasks(["race-middle", "race-high"], letters=True, offline=True)
    assert own == [middle, high] and harness is None


def test_local_copies_in_any_format_are_the_same_questions(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "race.parquet")
    (tmp_path / "race.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    (tmp_path / "race.json").write_text(json.dumps(ROWS))
    parquet, lines, whole = (
        load_questions(f"race-high:{tmp_path / 'race'}{suffix}") for suffix in (".parquet", ".jsonl", ".json")
    )
    assert parquet == lines == whole and parquet.name == "race-high"
    assert load_questions(str(tmp_path / "race.parquet")).items == parquet.items


@pytest.mark.parametrize("offline", [True, False])
def test_without_hub_or_file_the_error_says_what_to_do(hub, tmp_path, monkeypatch, offline):
    def unreachable(*words, **settings):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(FeatherweightError, match="offline was asked for" if offline else "could not be loaded") as problem:
        find_tasks(["race-high"], offline=offline)
    assert "race-high:PATH" in problem.value.fix
    (tmp_path / "mine.jsonl").write_text(json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0}))
    wrong = {
        "race-high:": "names no file",
        f"race-high:{tmp_path / 'mien.jsonl'}": "mine.jsonl",
        f"race-high:{tmp_path / 'mine.jsonl'}": "missing article",
        "race-hihg": "use race-high",
    }
    for name, says in wrong.items():
        with pytest.raises(FeatherweightError, match=says):
            load_questions(name)


def test_race_alone_is_left_to_lm_eval():
    assert [is_own(name) for name in ("race", "race-high", "race-middle:x.jsonl", "race_high")] == [False, True, True, False]
