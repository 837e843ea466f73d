"""A conversation reads each token once, and says what one forward over everything would say."""

from importlib import resources

import pytest
import torch

from featherweight.decoding.sampling import Sampling
from featherweight.errors import FeatherweightError
from featherweight.evaluation.conversation import Conversation, _until
from featherweight.kv_cache import attach_cache
from featherweight.kv_cache.presets import read_settings

TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }}\n{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
)


@pytest.fixture
def llama():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(resources.files("featherweight") / "assets" / "llama-4m")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def follow(model, ids, count):
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids


@pytest.mark.parametrize("cache", [None, "exact"])
@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_turns_go_on_from_the_cache_as_if_all_were_read_anew(llama, template, cache):
    model, tokenizer = llama
    tokenizer.chat_template = template
    if cache:
        attach_cache(model, read_settings(cache, 64))
    talk = Conversation(model, tokenizer)
    first = "".join(talk.reply("Who goes there?", 8))
    second = "".join(talk.reply("And who else?", 8))
    if template:
        turns = [{"role": "user", "content": "Who goes there?"}, {"role": "assistant", "content": first.strip()}]
        turns.append({"role": "user", "content": "And who else?"})
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer("User: Who goes there?\nAssistant:")["input_ids"]
        ids = follow(model, ids, 8) + tokenizer("\nUser: And who else?\nAssistant:", add_special_tokens=False)["input_ids"]
        assert talk.tally.prompt_tokens == len(ids) - 7  # of the first reply all but the last token was read when it was made
    assert second == tokenizer.decode(follow(model, list(ids), 8)[len(ids) :])
    assert talk.tally.tokens == 16 and talk.tally.cache.get_seq_length() == len(ids) + 7
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2


def test_a_reply_that_ends_or_breaks_leaves_the_cache_right(llama):
    model, tokenizer = llama
    talk = Conversation(model, tokenizer)
    end = follow(model, tokenizer("User: Who goes there?\nAssistant:")["input_ids"], 4)[-1]
    model.generation_config.eos_token_id = end
    assert len(list(talk.reply("Who goes there?", 8))) < 8
    model.generation_config.eos_token_id = None
    pieces = talk.reply("And who else?", 8)
    next(pieces)
    pieces.close()  # whoever reads the pieces stops
    expected = [*talk._tokens, *tokenizer("\nUser: Well?\nAssistant:", add_special_tokens=False)["input_ids"]]
    reply = "".join(talk.reply("Well?", 6))
    assert reply == tokenizer.decode(follow(model, expected, 6)[len(expected) :])


def test_a_lossy_cache_is_cropped_where_the_template_writes_something_else(llama):
    model, tokenizer = llama
    tokenizer.chat_template = TEMPLATE
    attach_cache(model, read_settings("keys=integer:axis=channel,group_size=8,window=8;values=integer:window=4", 64))
    talk = Conversation(model, tokenizer, sampling=Sampling(1.0))
    for text in ("Who goes there, and where to, and why?", "And who else?", "What then?"):
        list(talk.reply(text, 20))
        cache = talk.tally.cache.as_dict()
        assert cache["coded_nbytes"] > 0 and cache["nbytes"] < cache["exact_nbytes"]
    talk.reset()
    assert talk.tally.cache.get_seq_length() == 0 and talk.turns == [] and talk.tally.tokens == 60


def test_a_conversation_that_is_too_long_is_refused_and_stays_as_it_was(llama):
    talk = Conversation(*llama)
    list(talk.reply("Hello", 4))
    turns, tokens = talk.turns, talk._tokens
    with pytest.raises(FeatherweightError, match="exceed the model's context"):
        list(talk.reply("word " * 3000, 4))
    assert talk.turns == turns and talk._tokens == tokens


def test_what_may_begin_the_next_turn_is_held_back():
    assert list(_until("\nUser:", iter(["one", "\nUs", "e\nU", "ser: two", "three"]))) == ["one", "\nUse", ""]
    assert "".join(_until("\nUser:", iter(["one\n", "Us"]))) == "one\nUs"
