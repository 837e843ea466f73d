"""Names, files and forms that load_corpus understands, and what it says about the others."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from featherweight.data import Corpus, load_corpus
from featherweight.errors import FeatherweightError


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def json_lines(path: Path, rows: list[object]) -> str:
    text = "\n".join(json.dumps(row) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
        return str(path)
    return written(path, text)


def test_text_file_is_measured_as_it_stands_and_hashed_as_sha256sum_does(tmp_path):
    text = " One.\n\nStill one.\n\n\nTwo é.\n\n\n\nThree.\n"
    path = written(tmp_path / "a.txt", text)
    corpus = load_corpus(path, split="evaluation")
    assert corpus.documents == (" One.\n\nStill one.", "Two é.", "\nThree.\n")
    assert (corpus.text, corpus.rule, corpus.name) == (text, "joined", "a.txt")
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert load_corpus(path, split="calibration").rule == "documents"


def test_windows_line_ends_and_byte_order_mark_do_not_matter(tmp_path):
    plain = load_corpus(written(tmp_path / "a.txt", "One.\n\n\nTwo."), split="calibration")
    (tmp_path / "b.txt").write_bytes("\ufeffOne.\r\n\r\n\r\nTwo.".encode())
    assert load_corpus(str(tmp_path / "b.txt"), split="calibration").documents == plain.documents


@pytest.mark.parametrize("split, name", [("calibration", "calibration"), ("evaluation", "heldout")])
def test_shipped_samples_and_their_aliases(split, name):
    for alias in ("sample", "demo", name):
        corpus = load_corpus(alias, split=split)
        assert corpus.name == name
        assert len(corpus.text) > 400_000


def test_json_lines_of_text_and_of_chats(tmp_path):
    corpus = load_corpus(json_lines(tmp_path / "a.jsonl", [{"text": "One."}, {"text": "Two.", "id": 2}]), split="calibration")
    assert (corpus.documents, corpus.joining) == (("One.", "Two."), "\n\n")
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    chats = load_corpus(json_lines(tmp_path / "b.jsonl.gz", [{"messages": turns}]), split="calibration")
    assert chats.chats == (tuple(turns),)
    assert not chats.documents


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"text": "a"}\n\n{"text": ', "line 3 is not JSON"),
        ('{"text": "a"}\n["b"]', "line 2 is not a JSON object"),
        ('{"txt": "a"}', "line 1 has no text in 'text'"),
        ('{"text": 3}', "a int"),
        ('{"text": "a"}\n{"messages": [{"role": "user", "content": "b"}]}', "line 2 mixes text and chats"),
        ('{"messages": []}', "line 1 has malformed messages"),
        ('{"messages": [{"role": "user"}]}', "line 1 has malformed messages"),
        ("\n\n", "is empty"),
    ],
)
def test_malformed_json_lines_are_named_by_line(tmp_path, content, told):
    with pytest.raises(FeatherweightError, match=told):
        load_corpus(written(tmp_path / "a.jsonl", content), split="calibration")


def test_token_files_of_every_kind_hold_the_same_samples(tmp_path):
    ids = torch.arange(12).reshape(2, 6)
    numpy.save(tmp_path / "a.npy", ids.numpy().astype("uint16"))
    save_file({"tokens": ids.to(torch.int32), "scale": torch.ones(1)}, tmp_path / "a.safetensors")
    torch.save([ids[:1], ids[1]], tmp_path / "a.pt")
    torch.save(ids, tmp_path / "a.pth")
    corpora = [load_corpus(str(tmp_path / f"a.{kind}"), split="calibration") for kind in ("npy", "safetensors", "pt", "pth")]
    assert all(torch.equal(torch.stack(corpus.samples), ids) for corpus in corpora)
    assert len({corpus.sha256 for corpus in corpora}) == 1
    torch.save([ids[0, :5], ids[0, 5:], ids[1]], tmp_path / "b.pt")
    assert load_corpus(str(tmp_path / "b.pt"), split="calibration").sha256 != corpora[0].sha256
    numpy.save(tmp_path / "c.npy", ids[0].numpy())
    assert load_corpus(str(tmp_path / "c.npy"), split="calibration").rule == "joined"


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_token_files_that_are_none(tmp_path, capsys):
    numpy.save(tmp_path / "a.npy", numpy.ones(3))
    save_file({"a": torch.ones(2, dtype=torch.int64), "b": torch.ones(2, dtype=torch.int64)}, tmp_path / "b.safetensors")
    torch.save([Evil()], tmp_path / "c.pt")
    torch.save([torch.ones(2)], tmp_path / "d.pt")
    torch.save([], tmp_path / "e.pt")
    torch.save(torch.ones(2, 2, 2, dtype=torch.int64), tmp_path / "f.pt")
    (tmp_path / "g.npy").write_bytes(b"not an array")
    told = [
        "no token ids",
        "one integer tensor",
        "cannot be read",
        "no row of token ids",
        "is empty",
        "no row",
        "cannot be read",
    ]
    for path, words in zip(sorted(tmp_path.iterdir()), told, strict=True):
        with pytest.raises(FeatherweightError, match=words):
            load_corpus(str(path), split="calibration")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, words",
    [
        ("wikitext", "nearest names: wikitext2"),
        ("helbout", "nearest names: heldout"),
        ("hf:squad", "malformed data set name"),
        ("hf:a/b:c:d:e", "malformed data set name"),
        ("c4:", "names no file"),
        ("ptb:nowhere.txt", "no such file: nowhere.txt"),
    ],
)
def test_unknown_names_teach(name, words):
    with pytest.raises(FeatherweightError, match=words):
        load_corpus(name, split="calibration")


def test_missing_empty_and_foreign_files(tmp_path):
    written(tmp_path / "training.txt", "Some text.")
    with pytest.raises(FeatherweightError, match=r"nearest names there: training\.txt"):
        load_corpus(str(tmp_path / "trainin.txt"), split="calibration")
    with pytest.raises(FeatherweightError, match="no such folder either"):
        load_corpus(str(tmp_path / "nowhere" / "a.txt"), split="calibration")
    with pytest.raises(FeatherweightError, match="is a folder"):
        load_corpus(str(tmp_path), split="calibration")
    for name, content in (("empty.txt", b""), ("blank.txt", b" \n\n\n \n"), ("latin.txt", "é".encode("latin-1"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FeatherweightError, match="is not UTF-8" if name == "latin.txt" else "is empty"):
            load_corpus(str(tmp_path / name), split="evaluation")


def test_settings_that_do_not_exist_or_do_not_fit(tmp_path):
    with pytest.raises(FeatherweightError, match="unknown split 'training'"):
        load_corpus("sample", split="training")
    with pytest.raises(FeatherweightError, match="unknown variant 'old'"):
        load_corpus("sample", split="evaluation", variant="old")
    with pytest.raises(FeatherweightError, match="data_files goes with a hub name"):
        load_corpus("sample", split="evaluation", data_files=written(tmp_path / "a.txt", "a"))


def test_a_corpus_holds_one_kind_of_content():
    with pytest.raises(FeatherweightError, match="one kind of content"):
        Corpus("both", "calibration", documents=("a",), samples=(torch.ones(2, dtype=torch.int64),))
    with pytest.raises(FeatherweightError, match="nothing"):
        Corpus("neither", "calibration")
