"""Streaming: whole characters only, the same text as one forward over everything, draws by their own seed."""

from importlib import resources

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.evaluation import generate_text
from featherweight.evaluation.generate import Decoder

PROMPT = "The president of the United States"


@pytest.fixture(scope="module")
def llama():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(resources.files("featherweight") / "assets" / "llama-4m")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def test_greedy_text_is_that_of_full_forwards_without_a_cache(llama):
    model, tokenizer = llama
    row = tokenizer(PROMPT)["input_ids"]
    start = len(row)
    for _ in range(12):
        with torch.no_grad():
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    pieces = list(generate_text(model, tokenizer, PROMPT, max_new_tokens=12))
    assert "".join(pieces) == tokenizer.decode(row)[len(tokenizer.decode(row[:start])) :]
    assert len(pieces) > 6


def test_draws_follow_their_seed_and_leave_global_state_alone(llama):
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def drawn(seed):
        return "".join(generate_text(*llama, PROMPT, max_new_tokens=12, temperature=1.0, seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_characters_of_several_tokens_are_held_back_until_whole(llama):
    tokenizer = llama[1]
    text = " naïve 北京 🦔 – “né” 한"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert any("\ufffd" in tokenizer.decode([token]) for token in tokens)
    decoder = Decoder(tokenizer, tokenizer(PROMPT)["input_ids"])
    pieces = [decoder.add(token) for token in tokens]
    assert "".join(pieces) + decoder.rest() == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


def test_what_is_left_incomplete_comes_last(llama):
    tokenizer = llama[1]
    tokens = tokenizer("a 🦔", add_special_tokens=False)["input_ids"][:-1]
    decoder = Decoder(tokenizer, [])
    shown = "".join(decoder.add(token) for token in tokens)
    assert shown.strip() == "a"
    assert (shown + decoder.rest()).endswith("a \ufffd")


def test_generation_ends_at_the_end_token(llama, monkeypatch):
    model, tokenizer = llama
    everything = list(generate_text(model, tokenizer, PROMPT, max_new_tokens=8))
    second = tokenizer(PROMPT + everything[0] + everything[1])["input_ids"][-1]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [second])
    assert list(generate_text(model, tokenizer, PROMPT, max_new_tokens=8)) == everything[:1]


@pytest.mark.parametrize(
    "prompt, settings, words",
    [
        ("", {}, "the prompt is empty"),
        (PROMPT, {"max_new_tokens": 0}, "impossible generation settings"),
        (PROMPT, {"temperature": -1.0}, "impossible generation settings"),
        (PROMPT, {"max_new_tokens": 2048}, "exceed the model's context"),
        (PROMPT * 700, {}, "exceed the model's context"),
    ],
)
def test_impossible_requests(llama, prompt, settings, words):
    with pytest.raises(FeatherweightError, match=words):
        next(generate_text(*llama, prompt, **settings))
