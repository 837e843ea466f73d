"""Memory told from shapes, against what torch's own profiler counts and what loaded models hold."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.kv_cache.presets import preset
from featherweight.methods.gptq import GPTQ
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.models.experts import separate_experts
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource, resolve_config, resolve_model
from featherweight.planning.fit import fit, require_any
from featherweight.planning.memory import Tracer
from featherweight.planning.quantities import parse_bytes, parse_tokens
from featherweight.planning.synthetic import behaviour

PRESET = preset("kivi-2", 64)
SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "dtype": torch.float32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gemma3_text": {**SMALL, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4, "dtype": torch.float32},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def allocated(model: nn.Module, batch: int, context: int) -> tuple[int, Any]:
    """The most bytes that reading holds at once, by torch's profiler, and the cache."""
    ids = torch.zeros(batch, context, dtype=torch.long)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(input_ids=ids[:, :4], use_cache=True, logits_to_keep=1)  # what the first call alone makes
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    events = sorted(
        (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak, output.past_key_values


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_is_what_the_allocator_sees(family):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    trace = Tracer(build_skeleton(config), batch=2).at(40)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
    separate_experts(model)
    peak, past = allocated(model, 2, 40)
    held = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for layer in past.layers
        for tensor in (layer.keys, layer.values)
    }
    assert trace.prefill == pytest.approx(
        peak, rel=0.01
    )  # equal tokens all go to the same experts: what the trace takes for the most
    assert 0 <= trace.cache - sum(held.values()) <= 64  # and a few numbers that sliding windows count with
    if family == "llama":
        assert trace.cache == 2 * 2 * 2 * 8 * 40 * 4 * 2  # layers, keys and values, heads, head size, tokens, bytes, sequences


@pytest.fixture(scope="module")
def needed() -> dict[str, Any]:
    needs, _ = fit(resolve_model("demo"), ["gptq-4bit", "magnitude-50"], 2**30, context=256, batch=2, device="cpu")
    return {need.recipe: need for need in needs}


def test_weights_are_what_a_loaded_model_holds(needed, gptq_run):
    def held(folder: Any) -> int:
        model = fw.load(folder)
        tensors = {id(tensor): tensor.numel() * tensor.element_size() for tensor in model.state_dict(keep_vars=True).values()}
        return sum(tensors.values())

    assert needed["dense"].weights == held("demo")
    assert needed["gptq-4bit"].weights == held(gptq_run[1].folder)


def test_work_is_what_a_loaded_model_takes(needed, gptq_run):
    for name, folder in (("dense", "demo"), ("gptq-4bit", gptq_run[1].folder)):
        peak, _ = allocated(fw.load(folder), 2, 256)
        told = needed[name].work + needed[name].cache
        assert peak <= told * 1.001, name
        assert told <= 1.35 * peak, name  # temporaries of the made-up layer, scaled


def test_the_largest_context_fits_and_a_longer_one_does_not():
    source = resolve_model("demo")

    def need(context: int, limit: int) -> Any:
        return next(n for n in fit(source, ["gptq-4bit"], limit, context=context, batch=4)[0] if n.recipe == "gptq-4bit")

    limit = need(1000, 2**30).total
    found = need(64, limit).largest_context
    assert 980 <= found <= 1000
    assert need(found, limit).fits and not need(found + 32, limit).fits
    assert need(64, 2**40).largest_context == source.max_length() and need(64, 600 * 10**6).largest_context == 0


def test_a_config_is_enough(tmp_path, needed):
    shutil.copy(resolve_model("demo").folder / "config.json", tmp_path)
    needs, refused = fit(resolve_config(tmp_path), ["gptq-4bit", "magnitude-50"], 2**30, context=256, batch=2, device="cpu")
    assert {need.recipe: need for need in needs} == needed and not refused
    with pytest.raises(FeatherweightError, match="no model weights"):
        resolve_model(tmp_path)


def test_a_packed_embedding_and_its_tied_head_count_the_whole_table():
    plain = {"steps.0.bits": 4}
    packed = {**plain, "embedding": {"method": "rtn", "bits": 4}}
    source = resolve_model("demo")
    without, within = (
        fit(source, ["rtn-4bit"], 2**30, context=64, changes=changes)[0][-1] for changes in (plain, packed)
    )  # fmt: skip
    assert without.recipe == within.recipe == "rtn-4bit"
    assert within.weights < without.weights and within.work > without.work


def test_errors_say_what_would_fit(tmp_path):
    source = resolve_model("demo")
    with pytest.raises(FeatherweightError, match="--context 2048"):
        fit(source, ["rtn-4bit"], 2**30, context=4096)
    needs, _ = fit(source, ["rtn-4bit"], 650 * 10**6, context=2000, batch=8)
    with pytest.raises(FeatherweightError, match=r"(?s)smallest, rtn-4bit.*weights.*--context \d+ fits") as problem:
        require_any(needs, 2000, 8)
    context = int(problem.value.fix.split()[1])
    require_any(fit(source, ["rtn-4bit"], 650 * 10**6, context=context, batch=8)[0], context, 8)
    config = (source.folder / "config.json").read_text().rstrip().removesuffix("}")
    (tmp_path / "config.json").write_text(config + ', "quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(FeatherweightError, match="quantized already"):
        fit(ModelSource("quantized", tmp_path), ["rtn-4bit"], 2**30, context=64)


def test_the_made_up_layer_orders_methods_as_the_papers_do():
    def error(*chain: Any) -> float:
        return behaviour(chain, torch.bfloat16).error

    assert 0 < error(RTN(bits=8)) < error(GPTQ(bits=4)) < error(RTN(bits=4)) < error(GPTQ(bits=2))
    assert error(SparseGPT()) < error(Magnitude())
    assert error() == 0 and behaviour((), torch.bfloat16).per_weight == 0
    assert behaviour((RTN(bits=4),), torch.bfloat16).per_weight >= 2  # the decoded weight
    assert behaviour((SpQR(),), torch.bfloat16).per_feature > 0  # its outliers multiply in float32


@pytest.mark.parametrize(
    ("text", "value"), [("8GiB", 2**33), ("120 MB", 120 * 10**6), ("1.5kB", 1500), ("7", 7), ("1e6", 10**6), ("2gb", 2 * 10**9)]
)
def test_bytes(text, value):
    assert parse_bytes(text) == value


def test_tokens_and_what_is_neither():
    assert [parse_tokens(text) for text in ("32k", "4096", "0.5K", "1m")] == [32768, 4096, 512, 2**20]
    for wrong in ("", "k", "-1", "0", "3.3", "8GiB"):
        with pytest.raises(FeatherweightError):
            parse_tokens(wrong)
    for wrong in ("", "GiB", "-1GiB", "8 gigs", "8k"):
        with pytest.raises(FeatherweightError):
            parse_bytes(wrong)


def test_a_compressed_cache_is_counted_in_its_codecs():
    source, sizes = resolve_config("demo"), {"context": 2048, "batch": 2}

    def need(cache, prefill="chunked"):
        recipe = {"kv_cache": {**PRESET.as_dict(), "prefill": prefill}} if cache else {}
        return fit(source, ["rtn-4bit"], 10**9, changes=recipe, **sizes)[0][1]

    stock, coded, held = need(False), need(True), need(True, "exact")
    planned = fw.plan("demo", "rtn-4bit", changes={"kv_cache": "kivi-2"}).cache
    assert coded.cache == held.cache == 2 * planned.bytes_of(2048) < stock.cache / 4
    saved = (stock.cache - coded.cache) * 3 // 4  # of four layers one is exact while it is read
    assert stock.total - coded.total == saved
    assert held.total == stock.total  # reading holds the whole prompt exact
