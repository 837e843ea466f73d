"""Perplexity: known answers, the textbook formula, errors that name the window."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from featherweight.data import Windows
from featherweight.errors import FeatherweightError
from featherweight.evaluation import evaluate, perplexity, token_losses
from featherweight.evaluation.forward import dtype_of, fingerprint
from featherweight.evaluation.perplexity import window_losses
from featherweight.evaluation.summary import mean_with_error, perplexity_with_error

VOCABULARY = 11
DESCRIPTION = {"corpus": "t", "corpus_sha256": "0", "rule": "joined", "joining": "\n\n", "variant": "standard", "bos": "none"}


def windows_of(count: int = 5, length: int = 16) -> Windows:
    return Windows(torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0)), DESCRIPTION)


def bigram(seed: int = 0):
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda input_ids: SimpleNamespace(logits=table[input_ids])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    uniform = lambda input_ids: SimpleNamespace(logits=torch.full((*input_ids.shape, VOCABULARY), 3.0))  # noqa: E731
    measured = perplexity(uniform, windows_of())
    assert measured.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert measured.stderr == pytest.approx(0, abs=1e-6)


def test_token_losses_are_cross_entropy_in_any_chunk():
    logits, tokens = torch.randn(23, VOCABULARY, generator=torch.Generator().manual_seed(1)), windows_of(1, 23).tokens[0]
    theirs = nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
    for positions in (1, 5, 22, 256):
        torch.testing.assert_close(token_losses(logits, tokens, positions=positions), theirs)
    with pytest.raises(FeatherweightError, match="do not belong together"):
        token_losses(logits, tokens[:-1])


def test_perplexity_is_exp_of_the_mean_over_windows_with_a_delta_method_error():
    windows, model = windows_of(), bigram()
    losses = torch.stack(
        [nn.functional.cross_entropy(model(row[None]).logits[0, :-1].double(), row[1:]) for row in windows.tokens]
    )
    measured = perplexity(model, windows)
    assert measured.value == pytest.approx(float(losses.mean().exp()), rel=1e-6)
    assert measured.stderr == pytest.approx(measured.value * float(losses.std()) / math.sqrt(5), rel=1e-5)
    assert (measured.protocol.windows, measured.protocol.context, measured.protocol.cache) == (5, 16, "none")


def test_a_single_window_has_no_standard_error_and_a_hopeless_model_an_infinite_perplexity():
    assert mean_with_error(torch.tensor([2.0])) == (2.0, None)
    assert perplexity_with_error(torch.tensor([800.0, 900.0])) == (math.inf, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_name_the_window(bad):
    calls = iter(range(9))

    def broken(input_ids):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[0, 4, 2] = bad if next(calls) == 3 else 0
        return SimpleNamespace(logits=logits)

    with pytest.raises(FeatherweightError, match="not finite in window 3") as caught:
        perplexity(broken, windows_of())
    assert "1 of 16 positions, the first at 4" in caught.value.found


def test_tokens_beyond_the_vocabulary_are_refused():
    with pytest.raises(FeatherweightError, match="not this model's"):
        perplexity(Dropping(), Windows(torch.full((1, 4), VOCABULARY), DESCRIPTION))
    narrow = lambda input_ids: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))  # noqa: E731
    with pytest.raises(FeatherweightError, match="ids below 4"):
        perplexity(narrow, windows_of())


class Dropping(nn.Module):
    """A model with dropout and a configuration, as transformers models have."""

    config = SimpleNamespace(max_position_embeddings=64, vocab_size=VOCABULARY)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY, dtype=torch.bfloat16)
        self.dropout = nn.Dropout(0.5)
        self.told: list[bool] = []

    def forward(self, input_ids, use_cache):
        self.told.append(use_cache)
        return SimpleNamespace(logits=self.dropout(self.table(input_ids)))


def test_models_are_measured_in_evaluation_mode_without_cache_or_gradient():
    model, seen = Dropping().train(), []
    first = window_losses(model, windows_of(), progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(first, window_losses(model, windows_of()))
    assert model.training
    assert set(model.told) == {False}
    assert not first.requires_grad
    assert seen == [(done, 5) for done in range(1, 6)]
    assert dtype_of(model) == "bfloat16"


def test_the_fingerprint_follows_the_weights():
    torch.manual_seed(0)
    model = Dropping()
    before = fingerprint(model)
    assert before == fingerprint(model) == fingerprint(model.float())
    with torch.no_grad():
        model.table.weight[3, 3] += 1
    assert fingerprint(model) != before


def test_the_window_must_fit_the_context():
    with pytest.raises(FeatherweightError, match="longer than the model's context"):
        evaluate(Dropping(), None, data="heldout", length=65)


OPT = Path(__file__).parents[1] / "assets" / "opt-5m"


@pytest.mark.parametrize("family", ["llama-4m", "opt-5m"])
def test_real_models_match_the_textbook_on_the_heldout_text(family):
    from importlib import resources

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = OPT if family == "opt-5m" else resources.files("featherweight") / "assets" / family
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    (measured,) = evaluate(model, tokenizer, data="heldout", length=256, windows=3)
    text = (resources.files("featherweight") / "assets" / "heldout.txt").read_text(encoding="utf-8")
    row = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    with torch.no_grad():
        losses = [model(input_ids=part[None], labels=part[None]).loss for part in row[: 3 * 256].reshape(3, 256)]
    assert measured.value == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    assert 10 < measured.value < 40
    assert measured.protocol.describe().startswith("heldout, 3 windows of 256, joined by ")
