"""Multiple choice: the parser's table, likelihoods by hand, RACE files, wrong columns, the shipped set."""

import json
import runpy
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.cli.main import app
from featherweight.data.choices import Question, Questions, load_questions
from featherweight.errors import FeatherweightError
from featherweight.evaluation.choice import ask_for_letters, choose_by_likelihood, parse_answer, race_prompt
from featherweight.models.source import resolve_model

RACE = [
    {"article": "Tom has a dog.", "question": "What has Tom?", "options": ["a cat", "a dog", "a cow", "a hen"], "answer": "B"},
    {"article": "It rains.", "question": "What does it do?", "options": ["snows", "hails", "rains", "shines"], "answer": "c"},
]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Answer: B", 1), ("the answer is c.", 2), ("ANSWER IS: (D) because", 3), ("answer:a", 0), ("I say B) since A) is wrong", 1),
        ("b) yes", 1), ("A) no. Answer: C", 0), ("", None), ("E) none", None), ("no answer", None), ("answer a question", None),
        ("cab) ride", None),
    ],
)  # fmt: skip
def test_answers_are_parsed_as_in_the_table(text, index):
    assert parse_answer(text) == index


@pytest.fixture(scope="module")
def demo():
    return fw.load("demo", device="cpu", dtype=torch.float32), resolve_model("demo").tokenizer()


def test_likelihood_by_hand(demo):
    model, tokenizer = demo
    item = Question("The captain looked at the", ("sea and the ship", "of of of of", "sea"), 0)
    sums, lengths = [], []
    for choice in item.choices:
        before, whole = tokenizer(item.context)["input_ids"], tokenizer(f"{item.context} {choice}")["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(float(scores[i - 1, whole[i]]) for i in range(len(before), len(whole))))
        lengths.append(len(choice))
    best = [max(range(3), key=lambda i: sums[i]), max(range(3), key=lambda i: sums[i] / lengths[i])]
    for answer in range(3):
        items = Questions("by hand", (Question(item.context, item.choices, answer),), "")
        measured = choose_by_likelihood(model, tokenizer, items)
        assert [each.value for each in measured] == [float(answer == each) for each in best]


def test_the_embedded_model_is_above_chance_on_the_shipped_set(demo):
    model, tokenizer = demo
    accuracy, per_character = choose_by_likelihood(model, tokenizer, load_questions("continuation"))
    assert accuracy.value - 3 * accuracy.stderr > 0.25 and per_character.value - 3 * per_character.stderr > 0.25


def test_the_shipped_set_is_what_its_script_makes(monkeypatch, tmp_path):
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "benchmarks" / "make_choices.py"))
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "heldout.txt").write_bytes((root / "src" / "featherweight" / "assets" / "heldout.txt").read_bytes())
    monkeypatch.setitem(script["main"].__globals__, "ASSETS", assets)
    script["main"]()
    shipped = root / "src" / "featherweight" / "assets" / "continuation.jsonl"
    assert (assets / "continuation.jsonl").read_bytes() == shipped.read_bytes()


def test_race_as_the_seed_asked_it(demo, tmp_path):
    model, tokenizer = demo
    (tmp_path / "race.jsonl").write_text("\n".join(map(json.dumps, RACE)))
    questions = load_questions(str(tmp_path / "race.jsonl"))
    assert [item.answer for item in questions.items] == [1, 2]
    assert race_prompt(questions.items[0]).endswith("A) a cat\nB) a dog\nC) a cow\nD) a hen\n")
    answered, of_answered, of_all = ask_for_letters(model, tokenizer, questions)
    assert 0 <= of_all.value <= answered.value <= 1
    assert of_answered.value != of_answered.value or of_answered.value >= of_all.value
    assert len(choose_by_likelihood(model, tokenizer, questions)) == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"context": "a", "choices": ["b", "c"]}, "missing answer"),
        ({"article": "a", "question": "b", "answer": "A"}, "missing options"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "2 of 2"),
        ({"context": "a", "choices": ["b"], "answer": 0}, "1 choices"),
        (["a"], "list"),
    ],
)
def test_wrong_columns_are_named(row, says, tmp_path):
    (tmp_path / "file.json").write_text(json.dumps([row]))
    with pytest.raises(FeatherweightError, match=says):
        load_questions(str(tmp_path / "file.json"))
    with pytest.raises(FeatherweightError, match="continuation"):
        load_questions("continuations")


def test_the_option(capsys):
    app(["eval", "demo", "--task", "continuation", "--windows", "4", "--json"], standalone_mode=False)
    measured = json.loads(capsys.readouterr().out)["measurements"]
    assert {each["name"] for each in measured} == {"accuracy", "accuracy_per_character"}
    assert measured[0]["protocol"]["windows"] == 4 and measured[0]["protocol"]["corpus"] == "continuation"
