"""The cache in transformers: an exact codec changes nothing, a lossy one is textbook attention over what it stores."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheCodec, CacheSettings, CompressedCache, attach_cache, detach_cache, reads_codes
from featherweight.kv_cache.attach import ATTENTION
from featherweight.kv_cache.cache import Reads

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "head_dim": 32},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "gemma": {"num_key_value_heads": 1, "head_dim": 256},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt2": {},
    "falcon": {},
    "bloom": {},
}


@dataclass(frozen=True)
class Rounded(CacheCodec):
    """Multiples of a step, in groups of four tokens but for the newest eight or more; a second rounding would change them."""

    name: ClassVar[str] = "rounded"
    summary: ClassVar[str] = "of the tests"
    step: float = 0.1
    group_size: int = 4
    window: int = 8

    @property
    def group(self):
        return self.group_size

    def settled(self, total):
        return max(0, total - self.window) // self.group * self.group

    def constants(self, head_dim, generator):
        return {"shift": torch.rand(head_dim, generator=generator)}

    def layout(self, head_dim, dtype):
        return {"codes": (1, (head_dim,), torch.int16), "mean": (self.group, (head_dim,), dtype)}

    def encode(self, exact, constants):
        grouped = exact.unflatten(2, (-1, self.group))
        mean = grouped.mean(3)
        codes = ((grouped - mean.unsqueeze(3) - constants["shift"]) / self.step).round().to(torch.int16)
        return {"codes": codes.flatten(2, 3), "mean": mean}

    def decode(self, codes, constants, dtype):
        mean = codes["mean"].repeat_interleave(self.group, 2)
        return (codes["codes"] * self.step + constants["shift"] + mean).to(dtype)


INTEGER = {"codec": "integer", "group_size": 8, "window": 8}
QJL = {"codec": "qjl", "sketch": 64, "outliers": 2, "outlier_sketch": 32, "group_size": 4, "window": 8}
LOSSY = CacheSettings(keys=Rounded(), values=Rounded(step=0.2, group_size=2, window=5), seed=3)
SETTINGS = {
    "rounded": LOSSY,
    "first": replace(LOSSY, exact_first=3),  # in the middle of a group, of keys and of values
    "integer": CacheSettings.from_dict({"keys": {**INTEGER, "axis": "channel"}, "values": INTEGER}),
    "qjl": CacheSettings.from_dict({"keys": QJL, "values": INTEGER, "first_layers": 1, "first_keys": {**QJL, "sketch": 128}}),
}


def tiny(family="llama", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # larger than initialised, so that attention is not flat
        parameter.data.mul_(3)
    return model


def prompt(batch=2, length=20):
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def generate(model, ids, count=12, **settings):
    settings = {"do_sample": False, "attention_mask": torch.ones_like(ids), **settings}
    torch.manual_seed(5)
    return model.generate(ids, max_new_tokens=count, output_logits=True, return_dict_in_generate=True, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_codecs_repeat_the_stock_caches_logits_with_padding(family):
    model, ids = tiny(family), prompt()
    padded = torch.ones_like(ids)
    padded[0, :7] = 0
    before = generate(model, ids, attention_mask=padded)
    attach_cache(model, CacheSettings())
    after = generate(model, ids, attention_mask=padded)
    assert isinstance(after.past_key_values, CompressedCache)
    assert reads_codes(model) == (family not in ("falcon", "bloom"))
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    assert after.past_key_values.nbytes == after.past_key_values.exact_nbytes > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 6},
    ],
    ids=["sampling", "beams", "assisted", "chunks"],
)
def test_every_way_of_generating_works_and_exact_codecs_change_nothing(settings):
    model, ids = tiny(), prompt(1)
    before = generate(model, ids, **settings)
    attach_cache(model, CacheSettings())
    assert torch.equal(before.sequences, generate(model, ids, **settings).sequences)
    attach_cache(model, LOSSY)
    cache = generate(model, ids, **settings).past_key_values
    assert all(layer.reads.coded_keys and layer.reads.coded_values for layer in cache.layers)


def textbook(model, ids, steps, settings, prompt_length):
    """Logits of every token after the prompt, from full forwards whose attention replaces the settled tokens by their codes."""
    from featherweight.kv_cache.attention import AttentionInterface, AttentionMaskInterface, sdpa_mask

    cache = CompressedCache(model.config, settings)
    groups = model.config.num_attention_heads // model.config.num_key_value_heads

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        keys, values = settings.codecs(module.layer_idx)
        drawn = cache.layers[module.layer_idx]._drawn.of(module.layer_idx, torch.device("cpu"))
        total = key.shape[2]
        out = []
        for position in range(total):
            stored = []
            for codec, constants, exact in ((keys, drawn[0], key), (values, drawn[1], value)):
                seen = exact[:, :, : position + 1]
                settled = codec.settled(position + 1) if position >= prompt_length else 0
                if settled:
                    first, oldest = min(settled, settings.exact_first), seen[:, :, :settled].clone()
                    others = oldest[:, :, first : first + -first % codec.group]
                    if others.numel():
                        oldest[:, :, :first] = others.mean(2, keepdim=True)
                    coded = codec.decode(codec.encode(oldest, constants), constants, seen.dtype)
                    seen = torch.cat([seen[:, :, :first], coded[:, :, first:], seen[:, :, settled:]], 2)
                stored.append(seen.repeat_interleave(groups, 1).double())
            scores = query[:, :, position].double().unsqueeze(2) @ stored[0].transpose(-1, -2) * scaling
            out.append(scores.softmax(-1) @ stored[1])
        return torch.cat(out, 2).transpose(1, 2).to(query.dtype), None

    AttentionInterface.register("textbook", attention)
    AttentionMaskInterface.register("textbook", sdpa_mask)
    model.set_attn_implementation("textbook")
    try:
        with torch.no_grad():
            return model(ids[:, : prompt_length + steps], use_cache=False).logits[:, prompt_length - 1 :]
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(("name", "length"), [("rounded", 1), ("rounded", 21), ("first", 1), ("integer", 6), ("qjl", 13)])
@pytest.mark.parametrize("direct", [True, False], ids=["codes", "decoded"])
def test_decoding_is_textbook_attention_over_settled_codes(name, length, direct):
    settings, model, ids = SETTINGS[name], tiny(), prompt(2, 60)
    expected = textbook(model, ids, 30, settings, length)
    if direct:
        attach_cache(model, settings)
    cache, found = CompressedCache.from_model(model, settings), []
    with torch.no_grad():
        found.append(model(ids[:, :length], past_key_values=cache).logits[:, -1])
        found += [model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1] for at in range(length, length + 30)]
    found = torch.stack(found, 1)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    detach_cache(model)
    with torch.no_grad():
        exact = model(ids[:, : length + 30], use_cache=False).logits[:, length - 1 :]
    assert (found - exact).abs().max() > 0.05  # the codes are coarse enough to be seen
    steps = range(length + 1, length + 31)
    coded = sum(max(0, settings.keys.settled(total) - settings.exact_first) for total in steps)
    assert all(reads.coded_keys == coded and reads.exact_keys == sum(steps) - coded + length for reads in cache.reads)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_reading_codes_and_decoding_them_agree_at_every_head_dimension(head_dim):
    model, ids, settings = tiny(head_dim=head_dim), prompt(2, 30), SETTINGS["qjl"]
    padded = torch.ones(2, 30, dtype=torch.long)
    padded[1, :11] = 0
    caches = [CompressedCache(model.config, settings) for _ in range(2)]
    logits = []
    for cache, attach in zip(caches, (detach_cache, lambda model: attach_cache(model, settings)), strict=True):
        attach(model)
        with torch.no_grad():
            model(ids[:, :20], attention_mask=padded[:, :20], past_key_values=cache)
            cache.settle()
            logits.append(model(ids[:, 20:29], attention_mask=padded[:, :29], past_key_values=cache).logits)
            logits.append(model(ids[:, 29:], attention_mask=padded, past_key_values=cache).logits)
    scale = logits[0].abs().max()
    assert (logits[0] - logits[2]).abs().max() < 1e-5 * scale and (logits[1] - logits[3]).abs().max() < 1e-5 * scale
    assert caches[0].reads == caches[1].reads and caches[0].nbytes == caches[1].nbytes < caches[0].exact_nbytes


@pytest.mark.parametrize("prefill", ["exact", "chunked"])
def test_chunks_of_a_prompt_are_read_exactly_or_in_code(prefill):
    settings = CacheSettings(keys=Rounded(), values=Rounded(), prefill=prefill)
    model, ids = attach_cache(tiny(), settings), prompt(2, 48)
    cache = CompressedCache.from_model(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        parts = torch.cat([model(ids[:, at : at + 16], past_key_values=cache).logits for at in (0, 16, 32)], 1)
    assert (cache.reads[0].coded_keys, cache.layers[1].parts[0].coded) == ((0, 0) if prefill == "exact" else (8 + 24, 40))
    same = (parts - whole).abs().amax((0, 2)) < 1e-4
    assert same.all() if prefill == "exact" else same[:16].all() and not same[16:].any()
    cache.settle()
    assert cache.layers[1].parts[0].coded == 40 and cache.nbytes < cache.exact_nbytes


def test_cropping_into_the_codes_keeps_whole_groups_and_decodes_the_cut_one():
    model, ids = attach_cache(tiny(), LOSSY), prompt(2, 40)
    cache = CompressedCache.from_model(model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        cache.settle()
        part = cache.layers[0].parts[0]
        stored = part.decoded().clone()
        assert part.coded == 32
        cache.crop(-18)
        assert cache.get_seq_length() == 22 and part.coded == 20
        torch.testing.assert_close(part.decoded(), stored[:, :, :22])
        logits = model(ids[:, 22:23], past_key_values=cache).logits
    assert torch.isfinite(logits).all() and cache.get_seq_length() == 23


@pytest.mark.parametrize("left", [22, 2])
def test_the_first_tokens_stay_exact_when_the_codes_are_cropped_and_coded_again(left):
    settings = replace(LOSSY, exact_first=3)
    cache = CompressedCache(tiny().config, settings)
    states = torch.randn(2, 3, 2, 40, 32, generator=torch.Generator().manual_seed(2))
    cache.update(states[0], states[1], 0)
    cache.settle()
    layer = cache.layers[0]
    for part, exact in zip(layer.parts, states, strict=False):
        assert torch.equal(part.decoded()[:, :, :3], exact[:, :, :3])
        assert not torch.equal(part.decoded()[:, :, 3:8], exact[:, :, 3:8])
    cache.crop(left - 40)
    cache.update(states[0][:, :, left:], states[1][:, :, left:], 0)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.settle()
    for part, exact in zip(layer.parts, states, strict=False):
        assert part.coded == part.codec.settled(40) and torch.equal(part.decoded()[:, :, :3], exact[[2, 0, 0], :, :3])


def test_the_batch_is_reordered_repeated_and_selected_in_code_too():
    model, ids = attach_cache(tiny(), LOSSY), prompt(3, 30)
    cache = CompressedCache.from_model(model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    cache.settle()
    stored = [part.decoded().clone() for part in cache.layers[1].parts]
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    for part, before in zip(cache.layers[1].parts, stored, strict=True):
        torch.testing.assert_close(part.decoded(), before[[2, 0, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0 and cache.reads[0] == Reads()


def test_a_changed_batch_is_refused():
    cache = CompressedCache(tiny().config, LOSSY)
    cache.update(torch.zeros(2, 2, 5, 32), torch.zeros(2, 2, 5, 32), 0)
    with pytest.raises(FeatherweightError, match="batch changed"):
        cache.update(torch.zeros(3, 2, 1, 32), torch.zeros(3, 2, 1, 32), 0)
    with pytest.raises(FeatherweightError, match="other head dimensions"):
        cache.update(torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 16), 1)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mistral", {"sliding_window": 64}, "sliding window of 64"),
        ("gemma2", {}, "sliding_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("deepseek_v3", {}, "latents"),
        ("mamba", {}, "no attention heads"),
        ("t5", {}, "encoder-decoder"),
    ],
)
def test_models_without_such_a_cache_are_refused(family, changes, words):
    with pytest.raises(FeatherweightError, match=words):
        CompressedCache(AutoConfig.for_model(family, **changes), CacheSettings())


def test_attaching_is_undone_and_two_caches_are_refused():
    model, ids = tiny(), prompt(1)
    attach_cache(attach_cache(model, CacheSettings()), LOSSY)  # the later settings count
    assert model.config._attn_implementation == ATTENTION and "attn" not in model.config.to_json_string()
    with pytest.raises(FeatherweightError, match="two caches"):
        generate(model, ids, cache_implementation="static")
    detach_cache(model)
    assert model.config._attn_implementation == "sdpa"
    assert not isinstance(generate(model, ids).past_key_values, CompressedCache)
    with pytest.raises(FeatherweightError, match="no settings"):
        CompressedCache.from_model(model)


def test_buffers_hold_little_more_than_the_tokens_and_are_seldom_copied():
    model, ids = attach_cache(tiny(), LOSSY), prompt(1, 200)
    cache, buffers = CompressedCache.from_model(model), set()
    with torch.no_grad():
        model(ids, past_key_values=cache)
        for token in range(50):
            model(ids[:, token : token + 1], past_key_values=cache)
            codes = cache.layers[0].parts[0].codes["codes"]
            buffers.add(codes.untyped_storage().data_ptr())
    assert len(buffers) == 1
    assert cache.nbytes < cache.exact_nbytes and cache.allocated_nbytes < 2 * cache.nbytes
