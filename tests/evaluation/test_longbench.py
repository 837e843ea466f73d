"""LongBench from made files: measures against their definitions, prompts cut in the middle, answers through the cache."""

import json
import re

import pytest
import torch

import featherweight as fw
from featherweight.data.longbench import load_longbench, long_sets
from featherweight.errors import FeatherweightError
from featherweight.evaluation.answers import METRICS, score_answer
from featherweight.evaluation.generate import generate_text
from featherweight.evaluation.longbench import cut_middle, longbench
from featherweight.kv_cache import CacheSettings
from featherweight.models.source import resolve_model
from lossy import Coarse

CLASSES = ("Number", "Number of days", "City", "Country")


@pytest.mark.parametrize(
    ("metric", "answer", "truth", "value"),
    [
        ("f1", "The Blue, whale!", "a blue whale", 1.0),
        ("f1", "a whale in the sea", "blue whale", 2 * 1 / (3 + 2)),
        ("f1", "", "blue whale", 0.0),
        ("classes", "Type: City", "City", 1.0),
        ("classes", "City or Country", "City", 0.5),
        ("classes", "Number of days", "Number of days", 1.0),
        ("classes", "Number of days", "Number", 0.5),
        ("classes", "none", "City", 0.0),
        ("count", "There are 7, or 8.", "7", 0.5),
        ("count", "many", "7", 0.0),
        ("retrieval", "Paragraph 12", "Paragraph 12", 1.0),
        ("retrieval", "Paragraph 12", "Paragraph 1", 0.0),
        ("code", "\n# a comment\nreturn x", "return x", 1.0),
        ("code", "abcd", "abce", 0.75),
    ],
)
def test_measures_by_hand(metric, answer, truth, value):
    pytest.importorskip("rapidfuzz")
    assert score_answer(metric, answer, ["something else", truth] if metric == "f1" else [truth], CLASSES) == pytest.approx(
        value
    )


def test_rouge_l_is_rouge_scores():
    pytest.importorskip("rapidfuzz")
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    for answer, truth in (("the Cat sat, on a mat", "a cat was on the mat"), ("x y z", "z y x"), ("one", "two")):
        assert METRICS["rouge_l"](answer, truth, ()) == pytest.approx(scorer.score(truth, answer)["rougeL"].fmeasure)


def test_every_set_has_a_known_measure_and_asks_for_what_it_shows():
    for kind in long_sets().values():
        assert kind.metric in METRICS and kind.prompt.count("{context}") == 1 and 0 < kind.tokens <= 512
        assert not re.findall(r"\{(?!context|input)", kind.prompt)


def test_the_middle_goes():
    assert cut_middle(list(range(10)), 10) == list(range(10))
    assert cut_middle(list(range(10)), 5) == [0, 1, 7, 8, 9]


def write(folder, name, rows):
    common = {"length": 3, "language": "en", "all_classes": None, "_id": "0"}
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({**common, "dataset": name, **row}) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_files_are_read_and_what_is_wrong_with_them_told(tmp_path):
    write(tmp_path / "all", "qasper_e", [{"input": "who?", "context": "{input}", "answers": ["x"]}] * 3)
    write(tmp_path / "all", "trec", [{"input": "i", "context": "c", "answers": ["City"], "all_classes": CLASSES}])
    first, second = load_longbench(tmp_path / "all", limit=2)
    assert (first.kind.name, len(first.items), second.items[0].classes) == ("qasper", 2, CLASSES)
    assert "Article: {input}" in first.items[0].prompt and "Question: who?" in first.items[0].prompt
    row = {"input": "", "context": "", "answers": ["x"]}
    for name, rows, words in (
        ("dureader", [row], "without a prompt"), ("trec", [row], "nothing to score by"), ("lcc", [{"input": ""}], "missing context")
    ):  # fmt: skip
        write(tmp_path / name, name, rows)
        with pytest.raises(FeatherweightError, match=words):
            load_longbench(tmp_path / name)
    with pytest.raises(FeatherweightError, match="no LongBench files"):
        load_longbench(tmp_path / "nowhere")


def test_answers_are_generated_through_the_cache(tmp_path):
    source = resolve_model("demo")
    model, tokenizer = fw.load("demo", dtype=torch.float32), source.tokenizer()
    text = "It was a dark night, and the old man looked out of the window at the sea. " * 3
    write(tmp_path / "q", "hotpotqa", [{"input": "what?", "context": text, "answers": ["?"]}])
    (examples,) = load_longbench(tmp_path / "q")
    said = "".join(generate_text(model, tokenizer, examples.items[0].prompt, max_new_tokens=32))
    write(tmp_path / "q", "hotpotqa", [{"input": "what?", "context": text, "answers": [said]}] * 2)
    (examples,) = load_longbench(tmp_path / "q")
    exact = longbench(model, tokenizer, examples, cache=None)
    assert (exact.name, exact.value, exact.protocol.cache) == ("longbench_hotpotqa", 1.0, "none")
    coded = longbench(model, tokenizer, examples, cache=CacheSettings(keys=Coarse(newest=0), values=Coarse(newest=0)))
    assert coded.value < 1 and exact.protocol.differences(coded.protocol).keys() == {"cache"}
    with pytest.raises(FeatherweightError, match="no answer read any code"):
        longbench(model, tokenizer, examples, cache=CacheSettings(keys=Coarse(newest=10**6)))
    with pytest.raises(FeatherweightError, match="no such length"):
        longbench(model, tokenizer, examples, cache=None, length=33)
