"""KL, agreement and paired differences against brute force, with the reference in memory or on disk."""

from types import SimpleNamespace

import pytest
import torch

from featherweight.data import Windows
from featherweight.errors import FeatherweightError
from featherweight.evaluation import StoredReference, compare, perplexity, store_reference
from featherweight.evaluation.divergence import token_divergence

VOCABULARY = 13
DESCRIPTION = {"corpus": "t", "corpus_sha256": "0", "rule": "joined", "joining": "\n\n", "variant": "standard", "bos": "none"}
WINDOWS = Windows(torch.randint(VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(0)), DESCRIPTION)


class Bigram(torch.nn.Module):
    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        table = torch.randn(VOCABULARY, vocabulary, generator=torch.Generator().manual_seed(seed))
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def by_name(measurements):
    return {measurement.name: measurement for measurement in measurements}


def test_a_model_does_not_diverge_from_itself():
    measured = by_name(compare(Bigram(0), Bigram(0), WINDOWS))
    assert list(measured) == ["kl", "top1_agreement", "perplexity", "reference_perplexity", "nll_difference"]
    assert (measured["kl"].value, measured["kl"].stderr) == (0, 0)
    assert measured["top1_agreement"].value == 1
    assert (measured["nll_difference"].value, measured["nll_difference"].stderr) == (0, 0)
    assert measured["perplexity"].value == measured["reference_perplexity"].value


def test_every_figure_matches_brute_force_over_the_scored_positions():
    model, reference = Bigram(0), Bigram(1)
    measured = by_name(compare(model, reference, WINDOWS))
    ours, theirs = (bigram.table.detach().double().log_softmax(-1)[WINDOWS.tokens[:, :-1]] for bigram in (model, reference))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean(1)
    assert measured["kl"].value == pytest.approx(float(divergence.mean()), rel=1e-5)
    assert measured["kl"].stderr == pytest.approx(float(divergence.std()) / 6**0.5, rel=1e-5)
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    assert measured["top1_agreement"].value == pytest.approx(float(agreement))
    targets = WINDOWS.tokens[:, 1:, None]
    difference = (theirs.gather(-1, targets) - ours.gather(-1, targets)).squeeze(-1).mean(1)
    assert measured["nll_difference"].value == pytest.approx(float(difference.mean()), rel=1e-4)
    assert measured["nll_difference"].stderr == pytest.approx(float(difference.std()) / 6**0.5, rel=1e-4)
    assert measured["perplexity"] == perplexity(model, WINDOWS)
    assert measured["reference_perplexity"].value == pytest.approx(perplexity(reference, WINDOWS).value)


def test_the_direction_is_reference_to_model():
    sharp, flat = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = sharp.softmax(-1)
    divergence, _ = token_divergence(flat, sharp)
    assert float(divergence) == pytest.approx(float((p * (p / 0.5).log()).sum()), rel=1e-6)
    assert float(token_divergence(sharp, flat)[0]) != pytest.approx(float(divergence), rel=0.1)


def test_chunks_do_not_change_the_divergence():
    logits = torch.randn(2, 21, VOCABULARY, generator=torch.Generator().manual_seed(2))
    whole = token_divergence(*logits)
    for positions in (1, 4, 20):
        for mine, theirs in zip(token_divergence(*logits, positions=positions), whole, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_what_depends_on_the_reference_says_which():
    measured = by_name(compare(Bigram(0), Bigram(1), WINDOWS))
    assert measured["kl"].protocol.against == by_name(compare(Bigram(2), Bigram(1), WINDOWS))["kl"].protocol.against
    assert measured["kl"].protocol.against != by_name(compare(Bigram(0), Bigram(3), WINDOWS))["kl"].protocol.against
    assert measured["perplexity"].protocol.against == ""


def test_a_reference_on_disk_gives_the_same_numbers(tmp_path):
    stored = store_reference(Bigram(1), WINDOWS, tmp_path / "reference")
    assert compare(Bigram(0), stored, WINDOWS) == compare(Bigram(0), Bigram(1), WINDOWS)
    assert StoredReference.open(tmp_path / "reference") == stored
    other = Windows(WINDOWS.tokens[:3].clone(), DESCRIPTION)
    with pytest.raises(FeatherweightError, match="belongs to other windows"):
        compare(Bigram(0), stored, other)


def test_an_interrupted_reference_is_not_taken_for_a_whole_one(tmp_path):
    store_reference(Bigram(1), WINDOWS, tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_reference(Bigram(2), WINDOWS, tmp_path, progress=stop)
    with pytest.raises(FeatherweightError, match="no stored reference"):
        StoredReference.open(tmp_path)


def test_errors_tell_the_reference_from_the_model():
    broken = Bigram(1)
    with torch.no_grad():
        broken.table[:] = torch.nan
    with pytest.raises(FeatherweightError, match="the logits of the reference are not finite in window 0"):
        compare(Bigram(0), broken, WINDOWS)
    with pytest.raises(FeatherweightError, match="the logits of the model are not finite in window 0"):
        compare(broken, Bigram(0), WINDOWS)
    with pytest.raises(FeatherweightError, match="different vocabularies"):
        compare(Bigram(0), Bigram(0, vocabulary=VOCABULARY + 3), WINDOWS)
