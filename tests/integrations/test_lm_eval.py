"""lm-eval offline: its likelihoods against ours question by question, local data, sets, few-shot, what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.cli.main import app
from featherweight.data.choices import Question, Questions, load_questions
from featherweight.errors import FeatherweightError
from featherweight.evaluation.choice import _log_likelihoods, _row, choose_by_likelihood
from featherweight.evaluation.protocol import MeasurementTable
from featherweight.evaluation.task_sets import TASK_SETS
from featherweight.integrations.lm_eval import find_tasks, run_tasks
from featherweight.models.source import resolve_model

needed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'featherweight[lm-eval]'"
)

ARC = [
    {"question": "What is the sea made of?", "choices": {"text": ["water", "stone"], "label": ["A", "B"]}, "answerKey": "A"},
    {
        "question": "What do birds do?",
        "choices": {"text": ["read", "write", "fly"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    {"question": "Who rules a kingdom?", "choices": {"text": ["a dog", "a king"], "label": ["A", "B"]}, "answerKey": "B"},
]
LOCAL = {
    "arc_easy": ARC,
    "arc_challenge": ARC[1:],
    "piqa": [{"goal": "To light a room", "sol1": "open a window", "sol2": "close a door", "label": 0}],
    "rte": [{"sentence1": "The king is dead.", "sentence2": "The king lives.", "label": 1}] * 2,
    "winogrande": [{"sentence": "The ship met the storm and _ sank.", "option1": "ship", "option2": "storm", "answer": "1"}],
}
EDGES = [  # ends in a half word, continues with a comma, with two spaces, in the middle of a number
    Question("He was un", ("able to go", "happy"), 0),
    Question("He said", (", go", "'s", "  go"), 2),
    Question("It is 19", ("45", "46"), 0),
]
TASK = """
task: passages
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 7.0}
"""


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, rows in LOCAL.items():
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def demo():
    return fw.load("demo", device="cpu", dtype=torch.float32), resolve_model("demo").tokenizer()


def ask(model, folder: Path, items: tuple[Question, ...]):
    """lm-eval's measurements and samples of our questions, by a YAML such as a user would write."""
    rows = [{"context": item.context, "choices": item.choices, "answer": item.answer} for item in items]
    write_lines(folder / "questions.jsonl", rows)
    (folder / "passages.yaml").write_text(TASK % (folder / "questions.jsonl"))
    _, harness = find_tasks(["passages"], include_path=folder, offline=True)
    measured, results = run_tasks(*model, harness, batch_size=8)
    return {each.name: each for each in measured}, results["samples"]["passages"]


@needed
def test_likelihoods_agree_with_ours_question_by_question(demo, tmp_path):
    model, tokenizer = demo
    items = (*load_questions("continuation").items[:20], *EDGES)
    measured, samples = ask(demo, tmp_path, items)
    for item, sample in zip(items, samples, strict=True):
        ours = _log_likelihoods(model, [_row(model, tokenizer, item, choice) for choice in item.choices])
        assert [likelihood for likelihood, _ in sample["filtered_resps"]] == pytest.approx(ours, abs=2e-4)
        each = choose_by_likelihood(model, tokenizer, Questions("one", (item,), ""))
        assert [sample["acc"], sample["acc_norm"]] == [measurement.value for measurement in each]
    ours = choose_by_likelihood(model, tokenizer, Questions("all", items, ""))
    theirs = [measured["passages/acc"], measured["passages/acc_norm"]]
    assert [each.value for each in theirs] == [each.value for each in ours]
    assert [each.stderr for each in theirs] == pytest.approx([each.stderr for each in ours])
    protocol = theirs[0].protocol
    assert protocol.harness.startswith("lm-eval 0.") and protocol.task_version == "7.0" and protocol.windows == len(items)


@needed
def test_the_one_difference_is_white_space_at_the_end_of_a_context(demo, tmp_path):
    """lm-eval counts it to every choice, we to the context: both likelihoods move alike, so the order stays."""
    model, tokenizer = demo
    item = Question("The captain looked at the ", ("sea", "ship, and"), 0)
    _, (sample,) = ask(demo, tmp_path, (item,))
    ours = _log_likelihoods(model, [_row(model, tokenizer, item, choice) for choice in item.choices])
    moved = [their - our for (their, _), our in zip(sample["filtered_resps"], ours, strict=True)]
    assert moved[0] == pytest.approx(moved[1], abs=1e-3) and moved[0] < -1


@needed
def test_a_compressed_model_on_local_data_from_the_command_line(gptq_run, local, capsys):
    folder = str(gptq_run[1].folder)
    words = [
        "eval",
        folder,
        "--tasks",
        "arc_easy,continuation",
        "--tasks-data",
        str(local),
        "--limit",
        "2",
        "--offline",
        "--json",
    ]
    app(words, standalone_mode=False)
    measured = {each["name"]: each for each in json.loads(capsys.readouterr().out)["measurements"]}
    assert measured.keys() == {"accuracy", "accuracy_per_character", "arc_easy/acc", "arc_easy/acc_norm"}
    protocol = measured["arc_easy/acc"]["protocol"]
    assert (protocol["windows"], protocol["limit"], protocol["fewshot"], protocol["rule"]) == (2, 2, 0, "likelihood")


@needed
def test_a_set_is_the_mean_of_its_tasks_and_examples_change_the_protocol(demo, local):
    _, harness = find_tasks(["quip"], data=local, offline=True)
    measured = {each.name: each for each in run_tasks(*demo, harness)[0]}
    parts = [measured[f"{task}/acc"].value for task in TASK_SETS["quip"]]
    assert measured["quip/acc"].value == pytest.approx(sum(parts) / 5) and measured["quip/acc"].protocol.windows == 9
    with pytest.raises(FeatherweightError, match=r"arc_easy\.train\.jsonl"):
        find_tasks(["arc_easy"], data=local, fewshot=2, offline=True)
    write_lines(local / "arc_easy.train.jsonl", ARC)
    _, harness = find_tasks(["arc_easy"], data=local, fewshot=2, offline=True)
    before, state = measured["arc_easy/acc"], torch.random.get_rng_state()
    after, results = run_tasks(*demo, harness)
    assert torch.equal(state, torch.random.get_rng_state()), "lm-eval's seeds stay with it"
    assert results["samples"]["arc_easy"][0]["arguments"][0][0].count("Question:") == 3
    assert before.protocol.differences(after[0].protocol).keys() == {"fewshot", "task_sha256"}
    table = MeasurementTable()
    table.add("dense", [before])
    with pytest.raises(FeatherweightError, match="fewshot"):
        table.add("compressed", [after[0]])


@needed
def test_what_is_wrong_is_said_before_the_model_is_loaded(local, tmp_path):
    write_lines(local / "arc_easy.jsonl", [{"context": "a", "choices": ["b"]}])
    wrong = [
        ({"names": ["arc_easy"], "data": local}, r"context, choices.*question"),
        ({"names": ["hellaswag"], "data": local}, r"hellaswag\.jsonl"),
        ({"names": ["arc_easy"], "data": tmp_path / "none"}, "no such folder of questions"),
        ({"names": ["arc_easy"]}, "--tasks-data"),
        ({"names": ["arc_easy"], "letters": True}, "questions of our own"),
        ({"names": ["continuation"], "fewshot": 1}, "fewshot is a setting of lm-eval"),
        ({"names": ["questions.txt"], "include_path": tmp_path / "none"}, "no such folder of tasks"),
    ]
    for settings, says in wrong:
        with pytest.raises(FeatherweightError, match=f"(?s){says}"):
            find_tasks(offline=True, **settings)


@needed
def test_an_unknown_task_names_the_nearest(tmp_path, monkeypatch):
    from lm_eval import tasks

    full = tasks.TaskManager
    arc = Path(tasks.__file__).parent / "arc"  # in place of all 14 000
    monkeypatch.setattr(tasks, "TaskManager", lambda include_path=None, **_: full(include_path=arc, include_defaults=False))
    with pytest.raises(FeatherweightError, match="arc_easy"):
        find_tasks(["arc_eazy"], offline=True)


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("featherweight.integrations.lm_eval_tasks.find_spec", lambda name: None)
    with pytest.raises(FeatherweightError, match=r"featherweight\[lm-eval\]"):
        app(["eval", "demo", "--tasks", "arc_easy"], standalone_mode=False)
    with pytest.raises(FeatherweightError, match="--fewshot"):
        app(["eval", "demo", "--fewshot", "1"], standalone_mode=False)
    with pytest.raises(FeatherweightError, match="--against"):
        app(["eval", "demo", "--task", "continuation", "--against", "demo"], standalone_mode=False)
