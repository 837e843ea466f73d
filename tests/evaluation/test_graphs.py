"""Decoding from fixed addresses: the same tokens as with a growing cache, what a broken replay looks like, and real graphs on a GPU."""

import copy

import pytest
import torch

import featherweight as fw
from common import OPT
from featherweight.evaluation import graphs
from featherweight.evaluation.forward import measuring
from featherweight.evaluation.graphs import StaticDecoder, capture, replay_difference, time_graph, time_stock
from featherweight.evaluation.speed import measure_speed
from featherweight.evaluation.timing import random_tokens

CPU = torch.device("cpu")


def greedy(model, ids, steps):
    """Tokens by the growing cache that transformers takes by itself."""
    chosen, cache = [], None
    for _ in range(steps):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(ids)
    return torch.cat(chosen, 1)


def stepped(decoder, ids, steps, step=None):
    """Tokens by a decoder, or by another step on its buffers."""
    decoder.prefill(ids)
    chosen = [decoder.token.clone()]
    for _ in range(steps - 1):
        (step or decoder.step)()
        chosen.append(decoder.token.clone())
    return torch.cat(chosen, 1)


@pytest.fixture(scope="module")
def model():
    return fw.load("demo", device="cpu", dtype=torch.float32)


def test_the_static_decoder_chooses_the_same_tokens_and_starts_afresh(model, gptq_run):
    for each in (model, fw.load(OPT, device="cpu", dtype=torch.float32), fw.load(gptq_run[1].folder, dtype=torch.float32)):
        ids = random_tokens(each, 2, 7, CPU)
        with measuring(each):
            decoder = StaticDecoder(each, 2, 12, CPU)
            addresses = decoder.token.data_ptr()
            expected = greedy(each, ids, 5)
            assert torch.equal(stepped(decoder, ids, 5), expected)
            stepped(decoder, ids.flip(1), 5)
            assert torch.equal(stepped(decoder, ids, 5), expected) and decoder.token.data_ptr() == addresses


def test_a_replay_that_does_something_else_is_seen(model):
    ids = random_tokens(model, 1, 8, CPU)
    with measuring(model):
        decoder = StaticDecoder(model, 1, 12, CPU)
        assert replay_difference(decoder, decoder.step, ids, 3) == 0

        def stuck():  # as a graph of a cache that counts on the host: every token at the position of the recorded one
            kept = copy.deepcopy(decoder.cache)
            decoder.step()
            decoder.cache = kept

        assert replay_difference(decoder, stuck, ids, 3) > max(graphs.BOUNDS.values())


def test_a_cpu_says_why_it_has_none(model):
    timing = measure_speed(model, contexts=[8], tokens=2, repeats=1)["timings"][0]
    assert timing["graph"] is None and timing["graph_tokens_per_second"] is None and timing["graph_note"] == graphs.ON_A_CPU


def test_the_reason_names_the_place():
    def waits():
        raise RuntimeError("called a synchronizing CUDA operation\nmore")

    try:
        waits()
    except RuntimeError as problem:
        assert graphs._reason(problem).startswith("called a synchronizing CUDA operation (test_graphs.py:")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")


@needs_cuda
@pytest.mark.parametrize("batch", [1, 4])
def test_a_graph_chooses_the_tokens_that_eager_steps_choose(batch):
    model = fw.load("demo", device="cuda", dtype=torch.float32)
    ids = random_tokens(model, batch, 16, torch.device("cuda"))
    with measuring(model):
        decoder = StaticDecoder(model, batch, 16 + 12, ids.device)
        graph = capture(decoder, ids, graphs.WARM_UP)
        assert replay_difference(decoder, graph.replay, ids, 5) <= graphs.BOUNDS[torch.float32]
        assert torch.equal(stepped(decoder, ids, 12, graph.replay), greedy(model, ids, 12))


@needs_cuda
def test_packed_models_are_recorded_or_say_why(gptq_run):
    model = fw.load(gptq_run[1].folder, device="cuda")
    ids = random_tokens(model, 2, 16, torch.device("cuda"))
    times, reason = time_stock(model, ids, 4, 2)
    assert (len(times) == 8 and not reason) or (not times and reason)
    replayed = time_graph(model, ids, 4, 2)
    assert replayed.path == "fused" and len(replayed.seconds) == 8 and not replayed.note


@needs_cuda
def test_a_step_that_waits_for_the_host_is_refused_and_leaves_the_device_usable(monkeypatch):
    model = fw.load("demo", device="cuda")
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **named: (torch.ones(1, device="cuda").item(), forward(*args, **named))[1]
    )
    times, reason = time_stock(model, random_tokens(model, 1, 8, torch.device("cuda")), 4, 1)
    assert not times and "synchron" in reason and "test_graphs.py" in reason
    assert torch.rand(2, device="cuda").isfinite().all() and torch.cuda.get_sync_debug_mode() == 0
