from __future__ import annotations

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models.replay import capture, finish
from featherweight.models.skeleton import build_skeleton, materialize, release
from featherweight.models.structure import find_structure
from featherweight.models.weights import open_weights

from .families import FAMILIES, make_model, save_model, some_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_one_by_one_equal_the_whole_model(family):
    model = make_model(family)
    structure = find_structure(model)
    tokens = some_tokens(samples=3)
    inputs = capture(model, structure, tokens, batch_size=2)
    assert [tuple(states.shape) for states in inputs.hidden] == [(2, 9, 32), (1, 9, 32)]
    for block in structure.blocks:
        inputs.advance([inputs.run(model, block, index) for index in range(2)])
    for index, batch in enumerate(tokens.split(2)):
        whole = model(batch, use_cache=False).logits
        assert torch.equal(inputs.finish(model, inputs.hidden[index]), whole)
        assert torch.equal(finish(model, inputs.hidden[index], structure.blocks), whole)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", ["llama-tied-bias", "opt-350m", "falcon-7b", "gemma3", "mixtral"])
def test_only_one_block_needs_its_weights(family, tmp_path):
    reference = save_model(family, tmp_path)
    model = build_skeleton(reference.config)
    structure = find_structure(model)
    weights = open_weights(tmp_path, model)
    materialize(model, "", weights, None, "cpu")
    for block in structure.blocks:
        release(model, block)
    tokens = some_tokens()
    inputs = capture(model, structure, tokens, batch_size=3)
    for block in structure.blocks:
        materialize(model, block, weights, None, "cpu")
        inputs.advance([inputs.run(model, block, 0)])
        release(model, block)
    logits = inputs.finish(model, inputs.hidden[0])
    assert torch.equal(logits, reference(tokens, use_cache=False).logits)


def test_equal_arguments_are_stored_once():
    model = make_model("llama")
    structure = find_structure(model)
    inputs = capture(model, structure, some_tokens(samples=6), batch_size=2)
    tables = {id(call.kwargs["position_embeddings"][0]) for calls in inputs.calls.values() for call in calls}
    assert len(tables) == 1
    kinds = capture(make_model("gemma3"), structure, some_tokens(samples=4), batch_size=2).calls
    assert len({id(call.kwargs["position_embeddings"][0]) for calls in kinds.values() for call in calls}) == 2


def test_a_block_can_run_on_other_states_and_with_gradients():
    model = make_model("llama")
    structure = find_structure(model)
    inputs = capture(model, structure, some_tokens(), batch_size=3)
    states = (inputs.hidden[0] * 2).requires_grad_()
    output = inputs.run(model, structure.blocks[0], 0, hidden=states)
    assert output.requires_grad
    assert not torch.equal(output, inputs.run(model, structure.blocks[0], 0))


def test_misfits_are_refused():
    model = make_model("llama")
    structure = find_structure(model)
    with pytest.raises(FeatherweightError, match="nothing to run"):
        capture(model, structure, some_tokens()[:0], batch_size=2)
    inputs = capture(model, structure, some_tokens(), batch_size=2)
    with pytest.raises(FeatherweightError, match="do not fit"):
        inputs.advance(inputs.hidden[:1])


def test_a_failing_model_gets_its_blocks_back():
    model = make_model("llama")
    structure = find_structure(model)
    with pytest.raises(IndexError):
        capture(model, structure, torch.full((1, 4), 1000), batch_size=1)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_that_skips_a_block_is_refused():
    model = make_model("llama")
    structure = find_structure(model)
    model.config.num_hidden_layers = 1
    with pytest.raises(FeatherweightError, match="once each"):
        capture(model, structure, some_tokens(), batch_size=2)
