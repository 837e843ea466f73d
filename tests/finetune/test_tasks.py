"""RTE and WinoGrande: rows of the data sets read, prompts as in lm-evaluation-harness, answers learned, accuracy told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import featherweight as fw
from common import TINY, hub_cache
from featherweight.api import finetune
from featherweight.cli import main as cli
from featherweight.data.tasks import Example, load_examples
from featherweight.errors import FeatherweightError
from featherweight.finetune.examples import JUDGED, TOKENS, answered, choice_loss, encode, log_likelihoods
from featherweight.finetune.settings import Settings
from featherweight.models.source import resolve_model

#: Whether the town is in the south decides: an entailment that few steps can learn.
PLACES = [f"{'North' if index % 2 else 'South'} town {index}" for index in range(48)]
RTE = [
    {"idx": index, "sentence1": f"The house stands in {place}.", "sentence2": "The house is in the south.", "label": index % 2}
    for index, place in enumerate(PLACES)
]
WINOGRANDE = [
    {"qID": f"q{index}", "sentence": f"The {big} did not fit the {small} as the _ was too large.", "option1": small,
     "option2": big, "answer": "2"}
    for index, (big, small) in enumerate([("table", "door"), ("trophy", "case"), ("boat", "river"), ("man", "coat")] * 3)
]  # fmt: skip


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RTE as GLUE publishes it: tab-separated, labels as words, a test split without answers beside."""
    place = tmp_path_factory.mktemp("rte")
    words = ["entailment", "not_entailment"]
    for name, rows in (("train", RTE[:40]), ("dev", RTE[40:])):
        table = [["index", "sentence1", "sentence2", "label"]]
        table += [[str(row["idx"]), row["sentence1"], row["sentence2"], words[row["label"]]] for row in rows]
        (place / f"{name}.tsv").write_text("\n".join("\t".join(cells) for cells in table))
    (place / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    return place


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compressed") / "out"
    fw.compress(fw.plan("demo", "rtn-4bit", changes=TINY), made)
    return made


def test_rows_of_every_form_become_the_same_examples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_examples("rte", "train", str(lines(tmp_path / "train.jsonl", RTE[:40])))
    assert expected.items[0] == Example(
        tuple(("The house stands in South town 0.\nQuestion: The house is in the south. True or False?\nAnswer:", way)
              for way in (" True", " False")), 0,
    )  # fmt: skip
    assert expected.items[1].answer == 1
    renamed = [{"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["label"]} for row in RTE[:40]]
    files = {"rte/train/0000.parquet": RTE[:40], "rte/validation/0000.parquet": RTE[40:]}
    hub_cache(tmp_path / "hub", "nyu-mll/glue", files, "refs/convert/parquet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for other in (str(folder), str(lines(tmp_path / "super.jsonl", renamed)), "hub"):
        assert load_examples("rte", "train", other, offline=True).sha256 == expected.sha256, other
    assert len(load_examples("rte", "validation", str(folder)).items) == 8


def test_winogrande_judges_what_follows_the_blank(tmp_path: Path) -> None:
    item = load_examples("winogrande", "train", str(lines(tmp_path / "train_xl.jsonl", WINOGRANDE))).items[0]
    before = "The table did not fit the door as the "
    assert item == Example(((f"{before}door", " was too large."), (f"{before}table", " was too large.")), 1)


@pytest.mark.parametrize(
    ("rows", "message", "told"),
    [
        ([{**RTE[0], "label": -1}], "wrong row", "test has none"),
        ([{"sentence1": "a", "label": 0}], "wrong columns", "sentence1, sentence2, label"),
        ([], "no questions", "at least one"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, rows: list[dict], message: str, told: str) -> None:
    with pytest.raises(FeatherweightError, match=message) as refused:
        load_examples("rte", "train", str(lines(tmp_path / "train.jsonl", rows or [])) if rows else str(empty(tmp_path)))
    assert told in str(refused.value)


def empty(folder: Path) -> Path:
    (folder / "empty.json").write_text("[]")
    return folder / "empty.json"


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    with pytest.raises(FeatherweightError, match="offline") as refused:
        load_examples("winogrande", "train", offline=True)
    assert "--data FOLDER" in str(refused.value) and "option1" in str(refused.value)
    with pytest.raises(FeatherweightError, match="no one file for train"):
        load_examples("rte", "train", str(tmp_path))
    with pytest.raises(FeatherweightError, match="wrong columns in test"):
        load_examples("rte", "validation", str(folder / "test.tsv"))


def test_likelihoods_are_those_of_each_way_alone() -> None:
    """Filling, batches and the cut at the left change nothing that is judged."""
    source = resolve_model("demo")
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32), source.tokenizer()
    items = [
        Example((("The man went to the", " sea and back again."), ("A", " word.")), 1),
        Example((("He said that", " yes"), ("He said", " no, never")), 0),
    ]
    batch, cut = encode(items, tokenizer, 64)
    assert cut == 0 and batch.shape[:3] == (2, 2, 2)
    with torch.no_grad():
        found = log_likelihoods(model, batch)
        for row, item in enumerate(items):
            right_first = sorted(range(2), key=lambda way, item=item: way != item.answer)
            for place, way in enumerate(right_first):
                text = "".join(item.ways[way])
                tokens = torch.tensor([tokenizer(text)["input_ids"]])
                start = len(tokenizer(item.ways[way][0])["input_ids"])
                scores = model(input_ids=tokens).logits[0].log_softmax(-1)
                expected = sum(float(scores[index - 1, tokens[0, index]]) for index in range(start, tokens.shape[1]))
                assert float(found[row, place]) == pytest.approx(expected, rel=1e-4)
        assert float(choice_loss(model, batch)) == pytest.approx(float(-found.log_softmax(1)[:, 0].mean()), rel=1e-5)
        assert int(answered(model, batch)) == int((found[:, 0] > found[:, 1]).sum())
        assert int(answered(model, batch[:, :, :1].expand(-1, -1, 2, -1))) == 0, "a tie is no answer"
    short, cut = encode(items, tokenizer, 3)
    assert cut > 0 and short.shape[3] == 3
    assert short[0, TOKENS, 1].tolist() == batch[0, TOKENS, 1][batch[0, JUDGED, 1].nonzero().max() - 2 :][:3].tolist()


def test_a_task_is_learned_from_its_training_split(output: Path, folder: Path, tmp_path: Path) -> None:
    settings = Settings(
        task="rte", train=("norms",), length=64, held_out=8, batch_size=8, epochs=6, every=4, learning_rate=2e-2
    )
    told = finetune(output, tmp_path / "out", settings, data=str(folder), device="cpu").told
    assert told["after"] < 0.8 * told["before"]
    assert told["accuracy"]["after"] >= told["accuracy"]["before"] and told["accuracy"]["after"] >= 0.75
    assert told["data"]["trained_on"] == 32 and told["data"]["held_out"] == 8 and told["data"]["questions"] == 8
    fw.verify(tmp_path / "out")


def test_winogrande_through_the_command_line(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, dev = lines(tmp_path / "a.jsonl", WINOGRANDE[:8]), lines(tmp_path / "b.jsonl", WINOGRANDE[:3])
    words = ["--task", "winogrande", "--data", str(train), "--train", "norms", "--held-out", "2", "--device", "cpu", "--json"]
    for more, fails in (([], True), (["--validation", str(dev)], False)):
        monkeypatch.setattr("sys.argv", ["fw", "finetune", str(output), "-o", str(tmp_path / "out"), *words, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert bool(left.value.code) == fails
        shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert set(told["accuracy"]) == {"before", "after"} and told["data"]["validation"] == "b.jsonl"
