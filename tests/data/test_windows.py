"""Windows by the published rules, against the authors' loops written out."""

import random

import pytest
import torch

from featherweight.data import Corpus, calibration_windows, evaluation_windows, load_corpus
from featherweight.errors import FeatherweightError


class Letters:
    """One token per character, id = position in the alphabet; BOS is 0 and comes first unless told otherwise."""

    alphabet = "^abcdefghijklmnopqrstuvwxyz \n"
    chat_template: str | None = None

    def __init__(self, bos: bool = False) -> None:
        self.bos_token_id = 0 if bos else None

    def __len__(self) -> int:
        return len(self.alphabet)

    def __call__(self, text, *, add_special_tokens=True, truncation=False, verbose=True):
        start = [0] if self.bos_token_id == 0 and add_special_tokens else []
        return {"input_ids": start + [self.alphabet.index(letter) for letter in text]}

    def apply_chat_template(self, messages, *, tokenize):
        return "".join(f"^{message['content']}\n" for message in messages)


def documents(*lengths: int) -> tuple[str, ...]:
    generator = random.Random(7)
    return tuple("".join(generator.choices(Letters.alphabet[1:27], k=length)) for length in lengths)


def ids(text: str) -> list[int]:
    return Letters()(text)["input_ids"]


def test_documents_rule_is_the_published_loop():
    texts = documents(50, 5, 80, 20, 3, 60)
    corpus = Corpus("c4", "calibration", documents=texts, rule="documents", strict=True, joining=" ")
    ours = calibration_windows(corpus, Letters(), samples=9, length=20, seed=3)
    generator, theirs = random.Random(3), []
    for _ in range(9):
        while True:
            text = texts[generator.randint(0, len(texts) - 1)]
            if len(text) > 20:
                break
        start = generator.randint(0, len(text) - 20 - 1)
        theirs.append(ids(text)[start : start + 20])
    assert ours.tokens.tolist() == theirs
    assert ours.description["rule"] == "documents"
    assert ours.description["fallback"] is None


def test_joined_rule_is_the_published_loop():
    corpus = Corpus("wikitext2", "calibration", documents=documents(50, 5, 80), strict=True)
    ours = calibration_windows(corpus, Letters(), samples=5, length=16, seed=1)
    row, generator = ids("\n\n".join(corpus.documents)), random.Random(1)
    starts = [generator.randint(0, len(row) - 16 - 1) for _ in range(5)]
    assert ours.tokens.tolist() == [row[start : start + 16] for start in starts]
    assert ours.description["corpus_tokens"] == len(row) == 139


def test_seeds_decide_and_nothing_global_is_touched():
    corpus = Corpus("text", "calibration", documents=documents(500))
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    one, same, other = (calibration_windows(corpus, Letters(), samples=4, length=8, seed=seed) for seed in (0, 0, 1))
    assert one.sha256 == same.sha256 != other.sha256
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_short_documents_fall_back_to_the_joined_rule_and_say_so():
    short = Corpus("text", "calibration", documents=documents(10, 12, 9, 30), rule="documents")
    windows = calibration_windows(short, Letters(), samples=3, length=20, seed=0)
    assert windows.description["rule"] == "joined"
    assert "hold 30 tokens, fewer than 3 x 20" in windows.description["fallback"]
    none = Corpus("c4", "calibration", documents=documents(10, 12, 9), rule="documents", strict=True)
    assert "none of 3 documents" in calibration_windows(none, Letters(), samples=2, length=20, seed=0).description["fallback"]
    strict = Corpus("c4", "calibration", documents=documents(10, 12, 9, 30), rule="documents", strict=True)
    assert calibration_windows(strict, Letters(), samples=3, length=20, seed=0).description["rule"] == "documents"


def test_a_text_of_exactly_one_window_is_enough_and_one_token_less_is_not():
    corpus = Corpus("text", "calibration", documents=documents(20))
    assert calibration_windows(corpus, Letters(), samples=2, length=20, seed=0).tokens.shape == (2, 20)
    with pytest.raises(FeatherweightError, match="shorter than one window") as caught:
        calibration_windows(corpus, Letters(), samples=2, length=21, seed=0)
    assert caught.value.as_dict() == {
        "error": "text is shorter than one window",
        "found": "20 tokens",
        "expected": "at least 21 tokens",
        "fix": "use windows of at most 20 tokens, or a longer text",
    }


def test_tokenised_samples_are_truncated_in_order_and_checked():
    samples = tuple(torch.arange(start, start + 12) for start in range(4))
    corpus = Corpus("red.pt", "calibration", samples=samples, rule="documents")
    windows = calibration_windows(corpus, Letters(), samples=3, length=10, seed=0)
    assert windows.tokens.tolist() == [list(range(start, start + 10)) for start in range(3)]
    assert windows.description["bos"] == "as given"
    for samples_asked, length, words in ((5, 10, "at most 4 samples"), (2, 13, "at most 12 tokens")):
        with pytest.raises(FeatherweightError, match=words):
            calibration_windows(corpus, Letters(), samples=samples_asked, length=length, seed=0)
    foreign = Corpus("red.pt", "calibration", samples=tuple(sample + 20 for sample in samples), rule="documents")
    with pytest.raises(FeatherweightError, match="token ids of another tokenizer"):
        calibration_windows(foreign, Letters(), samples=2, length=10, seed=0)
    row = Corpus("row.npy", "evaluation", samples=(torch.arange(25) - 1,))
    with pytest.raises(FeatherweightError, match="id -1"):
        evaluation_windows(row, Letters(), length=5)


def test_chats_are_rendered_by_the_chat_template():
    chats = tuple(({"role": "user", "content": text},) for text in documents(30, 40))
    corpus = Corpus("chats.jsonl", "calibration", chats=chats, joining="", rule="documents")
    with pytest.raises(FeatherweightError, match="no chat template"):
        calibration_windows(corpus, Letters(), samples=1, length=10, seed=0)
    tokenizer = Letters(bos=True)
    tokenizer.chat_template = "given"
    joined = Corpus("chats.jsonl", "evaluation", chats=chats, joining="")
    row = evaluation_windows(joined, tokenizer, length=74).tokens[0].tolist()
    assert row == ids("".join(f"^{chat[0]['content']}\n" for chat in chats))
    assert calibration_windows(corpus, tokenizer, samples=2, length=10, seed=0).description["rule"] == "documents"


@pytest.mark.parametrize("tokens, length, count", [(100, 10, 10), (109, 10, 10), (10, 10, 1), (19, 10, 1)])
def test_evaluation_windows_are_len_over_length_and_drop_the_tail(tokens, length, count):
    corpus = Corpus("text", "evaluation", documents=documents(tokens))
    windows = evaluation_windows(corpus, Letters(), length=length)
    assert len(windows) == count == tokens // length
    assert windows.tokens.flatten().tolist() == ids(corpus.text)[: count * length]


def test_bos_stands_in_the_first_window_only():
    corpus = Corpus("text", "evaluation", documents=documents(40, 37))
    windows = evaluation_windows(corpus, Letters(bos=True), length=10)
    assert (windows.tokens == 0).sum() == 1
    assert windows.tokens[0, 0] == 0
    assert windows.description["bos"] == "first window only"
    assert evaluation_windows(corpus, Letters(), length=10).description["bos"] == "none"


def test_asking_for_fewer_windows_takes_the_first_and_for_more_is_an_error():
    corpus = Corpus("text", "evaluation", documents=documents(100))
    every = evaluation_windows(corpus, Letters(), length=10)
    assert torch.equal(evaluation_windows(corpus, Letters(), length=10, windows=3).tokens, every.tokens[:3])
    with pytest.raises(FeatherweightError, match="at most 10 windows"):
        evaluation_windows(corpus, Letters(), length=10, windows=11)
    for length, windows in ((1, 1), (10, 0)):
        with pytest.raises(FeatherweightError, match="windows need a size"):
            evaluation_windows(corpus, Letters(), length=length, windows=windows)


def test_c4_evaluation_is_crops_of_seed_0_in_its_standard_variant():
    texts = documents(50, 5, 80)
    corpus = Corpus("c4", "evaluation", documents=texts, rule="documents", strict=True, maximum_windows=256)
    windows = evaluation_windows(corpus, Letters(), length=20)
    assert windows.tokens.shape == (256, 20)
    calibrated = Corpus("c4", "calibration", documents=texts, rule="documents", strict=True)
    assert torch.equal(windows.tokens[:7], calibration_windows(calibrated, Letters(), samples=7, length=20, seed=0).tokens)
    assert torch.equal(windows.tokens[:3], evaluation_windows(corpus, Letters(), length=20, windows=3).tokens)
    with pytest.raises(FeatherweightError, match="at most 256 windows"):
        evaluation_windows(corpus, Letters(), length=20, windows=257)
    with pytest.raises(FeatherweightError, match="no document of c4 is longer"):
        evaluation_windows(corpus, Letters(), length=200)


def test_c4_evaluation_stops_at_256_windows_in_its_new_variant():
    corpus = Corpus("c4", "evaluation", documents=documents(3000), joining=" ", strict=True, maximum_windows=256)
    assert evaluation_windows(corpus, Letters(), length=10).tokens.shape == (256, 10)


def test_the_shipped_samples_with_the_shipped_tokenizer():
    from importlib import resources

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("featherweight") / "assets" / "llama-4m"))
    windows = calibration_windows(load_corpus("sample", split="calibration"), tokenizer, samples=4, length=512, seed=0)
    assert windows.tokens.shape == (4, 512)
    heldout = evaluation_windows(load_corpus("heldout", split="evaluation"), tokenizer, length=1024)
    assert len(heldout) == 172819 // 1024 == 168
