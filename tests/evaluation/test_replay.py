"""One forward through a coded cache against a decode loop written out."""

import pytest
import torch

from featherweight.evaluation import replay
from featherweight.evaluation.replay import Replay, draw_constants, replaying
from featherweight.kv_cache import CacheSettings
from lossy import Coarse
from models.families import make_model

MODELS = ("llama", "opt-125m", "mistral", "gpt2")


class Loop:
    """Keys and values token by token, encoded as soon as they settle: what a cache does, in the plainest way."""

    def __init__(self, settings):
        self.settings, self.tokens = settings, {}

    def attend(self, layer, query, key, value, scale, window):
        kept = self.tokens.setdefault(layer, ([], []))
        sides = []
        constants = draw_constants(self.settings, layer, (key.shape[-1], value.shape[-1]), key.device)
        for codec, drawn, new, side in zip(self.settings.codecs(layer), constants, (key, value), kept, strict=True):
            side.append(new)
            exact = torch.cat(side, 2)
            count = codec.settled(exact.shape[2])
            groups = [
                codec.decode(codec.encode(exact[:, :, at : at + codec.group], drawn), drawn, exact.dtype)
                for at in range(0, count, codec.group)
            ]
            sides.append(torch.cat([*groups, exact[:, :, count:]], 2).repeat_interleave(query.shape[1] // key.shape[1], 1))
        scores = query @ sides[0].transpose(-1, -2) * scale
        scores[..., : max(0, scores.shape[-1] - window)] = -torch.inf
        return scores.softmax(-1) @ sides[1]


@pytest.fixture(params=MODELS)
def model(request):
    return make_model(request.param, seed=3).float().eval()


def stepwise(model, settings, tokens):
    """Logits of a loop over the tokens, with a cache of our own inside the attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    loop = Loop(settings)

    def attention(module, query, key, value, attention_mask, scaling=None, **others):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = loop.attend(module.layer_idx, query, key, value, scale, others.get("sliding_window") or 10**6)
        return out.transpose(1, 2), None

    AttentionInterface.register("test_loop", attention)
    AttentionMaskInterface.register("test_loop", eager_mask)
    model.set_attn_implementation("test_loop")
    logits = [
        model(input_ids=tokens[:, at : at + 1], position_ids=torch.tensor([[at]]), use_cache=False).logits
        for at in range(tokens.shape[1])
    ]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("settings", [
    CacheSettings(keys=Coarse(), values=Coarse(tokens=1, newest=5)),
    CacheSettings(keys=Coarse(tokens=8, newest=0), first_layers=1, first_keys=Coarse(tokens=1, newest=0)),
])  # fmt: skip
def test_one_forward_is_the_decode_loop(model, settings, monkeypatch):
    tokens = torch.randint(3, 97, (1, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(input_ids=tokens, use_cache=False).logits
        for elements in (replay.ELEMENTS, 4 * 33 * 7):  # at once, and seven queries at a time
            monkeypatch.setattr(replay, "ELEMENTS", elements)
            state = Replay(settings)
            with replaying(model, state):
                whole = model(input_ids=tokens, use_cache=False).logits
            assert sorted(state.coded) == [0, 1]
            assert state.coded[1][0] == sum(settings.keys.settled(t) for t in range(1, 34))
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, plain)
        torch.testing.assert_close(whole, stepwise(model, settings, tokens), atol=1e-4, rtol=0)
    assert (whole - plain).abs().max() > 1e-3


def test_the_exact_cache_changes_nothing(model):
    tokens = torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), replaying(model, state := Replay(CacheSettings())):
        through = model(input_ids=tokens, use_cache=False).logits
    assert state.coded == {0: [0, 0], 1: [0, 0]}
    with torch.no_grad():
        torch.testing.assert_close(through, model(input_ids=tokens, use_cache=False).logits, atol=1e-5, rtol=0)
