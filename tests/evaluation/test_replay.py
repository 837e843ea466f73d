"""A text through a coded cache: one forward against tokens fed one by one, for every codec and several architectures."""

from dataclasses import replace

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.evaluation import replay
from featherweight.evaluation.replay import Replay, replaying
from featherweight.evaluation.through_cache import ThroughCache, cache_label
from featherweight.kv_cache import CODECS, CacheSettings, make_codec
from lossy import Coarse
from models.families import make_model

TOKENS = torch.randint(3, 97, (1, 45), generator=torch.Generator().manual_seed(1))

#: Every codec at windows that 45 tokens reach, and mixtures of codecs, groups and layers.
SETTINGS = {
    "coarse": CacheSettings(keys=Coarse(), values=Coarse(tokens=1, newest=5)),
    "first tokens": CacheSettings(keys=Coarse(), values=Coarse(tokens=1, newest=5), exact_first=6),
    "first layers": CacheSettings(keys=Coarse(tokens=8, newest=0), first_layers=1, first_keys=Coarse(tokens=1, newest=0)),
    "integer": CacheSettings.from_dict({
        "keys": {"codec": "integer", "axis": "channel", "group_size": 8, "window": 16},
        "values": {"codec": "integer", "group_size": 8, "window": 16},
    }),
    "rotated": CacheSettings.from_dict({
        "keys": {"codec": "rotated", "group_size": 8, "window": 16},
        "values": {"codec": "rotated", "bits": 2, "lattice": True, "window": 7},
    }),
    "qjl": CacheSettings.from_dict({
        "keys": {"codec": "qjl", "outliers": 2, "group_size": 8, "window": 16}, "values": {"codec": "integer", "window": 4},
    }),
}  # fmt: skip


def eager(family):
    model = make_model(family, seed=3).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # so that codes are seen in the logits
    return model


@pytest.mark.parametrize("family", ["llama", "opt-125m", "qwen3", "gpt2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_one_forward_is_token_by_token_through_the_real_cache(family, name, monkeypatch):
    model, settings = eager(family), SETTINGS[name]
    with torch.no_grad():
        plain = model(input_ids=TOKENS, use_cache=False).logits
        whole = ThroughCache(model, settings)(input_ids=TOKENS).logits
        torch.testing.assert_close(model(input_ids=TOKENS, use_cache=False).logits, plain)  # the model's own attention is back
        monkeypatch.setattr(replay, "ELEMENTS", 4 * 45 * 7)  # seven queries at a time
        torch.testing.assert_close(ThroughCache(model, settings)(input_ids=TOKENS).logits, whole, atol=1e-4, rtol=0)
        stepwise = ThroughCache(model, settings, stepwise=True)(input_ids=TOKENS).logits
    torch.testing.assert_close(whole, stepwise, atol=1e-4, rtol=0)
    assert (whole - plain).abs().max() > 1e-2


def test_no_codec_was_forgotten():
    used = {codec.name for settings in SETTINGS.values() for codec in settings.codecs(1)} | {"exact"}
    assert set(CODECS) <= used


def test_the_exact_cache_changes_nothing_and_reads_no_code():
    model = eager("llama")
    state = Replay(ThroughCache(model, CacheSettings())._constants)
    with torch.no_grad(), replaying(model, state):
        through = model(input_ids=TOKENS, use_cache=False).logits
    assert state.coded == {0: [0, 0], 1: [0, 0]}
    with torch.no_grad():
        torch.testing.assert_close(through, model(input_ids=TOKENS, use_cache=False).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["coarse", "first tokens"])
def test_what_is_read_in_code_is_counted(name):
    model, settings = eager("llama"), SETTINGS[name]
    state = Replay(ThroughCache(model, settings)._constants)
    with torch.no_grad(), replaying(model, state):
        model(input_ids=TOKENS, use_cache=False)
    expected = [sum(max(0, codec.settled(t) - settings.exact_first) for t in range(1, 46)) for codec in settings.codecs(1)]
    assert state.coded == {0: expected, 1: expected}


def test_a_codec_that_is_never_read_is_an_error():
    late = CacheSettings(keys=make_codec({"codec": "integer", "axis": "channel", "group_size": 8, "window": 16}))
    model = eager("llama")
    with pytest.raises(FeatherweightError, match="codes nothing that is read") as error:
        ThroughCache(model, late)(input_ids=TOKENS[:, :16])
    assert "17 tokens or more" in str(error.value)
    ThroughCache(model, late)(input_ids=TOKENS[:, :17])
    with pytest.raises(FeatherweightError, match="33 tokens or more"):
        ThroughCache(model, replace(late, exact_first=16))(input_ids=TOKENS[:, :17])
    model.model.layers[1].self_attn.forward = lambda hidden_states, **others: (hidden_states, None)
    with pytest.raises(FeatherweightError, match="never read"):
        ThroughCache(model, late)(input_ids=TOKENS)


def test_labels_tell_settings_apart():
    told = [cache_label(settings) for settings in (None, CacheSettings(), *SETTINGS.values())]
    assert len(set(told)) == len(told) and told[:2] == ["none", "keys exact, values exact"]
    assert cache_label(CacheSettings(seed=3)) != cache_label(CacheSettings())
