"""WikiText-2, PTB and C4 by their published rules, on small files of the same format; the hub only through its cache."""

import gzip
import json

import datasets
import pytest

from common import hub_cache
from featherweight.data import load_corpus
from featherweight.errors import FeatherweightError

ROWS = [
    "",
    " = Title = \n",
    "",
    " First paragraph . \n",
    " Second . \n",
    "",
    " = = Part = = \n",
    "",
    "",
    " = = = Deeper = = = \n",
    "",
    " Third . \n",
]


@pytest.fixture
def squeezed(tmp_path):
    path = tmp_path / "wikitext2-test.txt"
    path.write_text("".join(row for row in ROWS if row))
    return path


def test_wikitext_rows_are_joined_by_a_blank_line(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text("".join(row or " \n" for row in ROWS))
    corpus = load_corpus(f"wikitext2:{path}", split="evaluation")
    assert corpus.text == "\n\n".join(ROWS)
    assert (corpus.name, corpus.rule, corpus.note) == ("wikitext2", "joined", "")


def test_squeezed_wikitext_gets_its_blank_rows_back_and_says_so(squeezed):
    corpus = load_corpus(f"wikitext2:{squeezed}", split="evaluation")
    assert corpus.text == "\n\n".join(ROWS)
    assert "6 restored around headings" in corpus.note
    assert load_corpus(str(squeezed), split="evaluation").text == squeezed.read_text()


@pytest.mark.parametrize(
    "split, variant, joining",
    [
        ("evaluation", "standard", "\n\n"),
        ("evaluation", "new", "\n\n"),
        ("calibration", "standard", "\n\n"),
        ("calibration", "new", " "),
    ],
)
def test_wikitext_joining(squeezed, split, variant, joining):
    corpus = load_corpus("wikitext2", split=split, variant=variant, data_files=str(squeezed), offline=True)
    assert (corpus.joining, corpus.rule) == (joining, "joined")
    assert corpus.variant == ("standard" if split == "evaluation" else variant)


@pytest.mark.parametrize("variant, joining", [("standard", "\n\n"), ("new", " ")])
@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_ptb_joining(tmp_path, split, variant, joining):
    path = tmp_path / "ptb.test.txt"
    path.write_text(" no it was n't black monday \n but while the <unk> fell N points \n")
    corpus = load_corpus(f"ptb:{path}", split=split, variant=variant)
    assert corpus.text == f"no it was n't black monday{joining}but while the <unk> fell N points"
    assert corpus.variant == variant


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "c4-validation.00000-of-00008.json.gz"
    rows = [json.dumps({"text": f"Document {index}.", "timestamp": "", "url": ""}) for index in range(1200)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    return path


def test_c4_variants(shard):
    standard = load_corpus(f"c4:{shard}", split="evaluation")
    assert (standard.rule, standard.maximum_windows, len(standard.documents)) == ("documents", 256, 1200)
    new = load_corpus("c4", split="evaluation", variant="new", data_files=str(shard))
    assert (new.rule, new.joining, new.maximum_windows, len(new.documents)) == ("joined", " ", 256, 1100)
    calibration = load_corpus(f"c4:{shard}", split="calibration", variant="new")
    assert (calibration.rule, calibration.variant, calibration.maximum_windows) == ("documents", "standard", None)


def test_published_and_other_data_sets_come_from_the_hub_cache_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    wikitext = {"wikitext-2-raw-v1/test-00000-of-00001.parquet": [{"text": row} for row in ROWS]}
    hub_cache(tmp_path / "hub", "Salesforce/wikitext", wikitext)
    assert load_corpus("wikitext2", split="evaluation", offline=True).text == "\n\n".join(ROWS)
    parquet = {f"penn_treebank/{split}/0000.parquet": [{"sentence": split}] for split in ("validation", "test")}
    hub_cache(tmp_path / "hub", "ptb-text-only/ptb_text_only", parquet, revision="refs/convert/parquet")
    assert load_corpus("ptb", split="evaluation", offline=True).text == "validation"
    assert load_corpus("ptb", split="evaluation", variant="new", offline=True).text == "test"
    chats = [{"body": "One.", "messages": [{"role": "user", "content": "Hello?"}]}]
    hub_cache(tmp_path / "hub", "someone/chats", {"train.parquet": chats, "test.parquet": [{"body": "Two."}]})
    assert load_corpus("hf:someone/chats::body", split="calibration", offline=True).documents == ("One.",)
    assert load_corpus("hf:someone/chats::body", split="evaluation", offline=True).documents == ("Two.",)
    with pytest.raises(FeatherweightError, match="has no column 'text'"):
        load_corpus("hf:someone/chats", split="calibration", offline=True)


@pytest.mark.parametrize("name", ["wikitext2", "c4", "ptb", "hf:nobody/nothing"])
def test_offline_and_not_cached_is_a_clear_error(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FeatherweightError, match="is not cached, and offline was asked for") as caught:
        load_corpus(name, split="evaluation", offline=True)
    assert "local" in caught.value.fix


def test_parquet_and_unknown_kinds_of_local_data_files(tmp_path):
    datasets.Dataset.from_list([{"sentence": " a b "}, {"sentence": "c"}]).to_parquet(tmp_path / "ptb.parquet")
    assert load_corpus(f"ptb:{tmp_path / 'ptb.parquet'}", split="evaluation").text == "a b\n\nc"
    (tmp_path / "ptb.csv").write_text("a\n")
    with pytest.raises(FeatherweightError, match="unknown kind of file"):
        load_corpus(f"ptb:{tmp_path / 'ptb.csv'}", split="evaluation")
    (tmp_path / "bad.json.gz").write_bytes(b"no gzip")
    with pytest.raises(FeatherweightError, match="cannot be read"):
        load_corpus(f"c4:{tmp_path / 'bad.json.gz'}", split="evaluation")
    with pytest.raises(FeatherweightError, match="no such file"):
        load_corpus("c4", split="evaluation", data_files=str(tmp_path / "missing.json.gz"))
