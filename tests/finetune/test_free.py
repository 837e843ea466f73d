"""What is free and what is not: the mistakes that the authors of LPLR-Q report from their fine-tuning, one test each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from common import TINY
from featherweight.finetune.free import free_parameters, store_anew
from featherweight.finetune.settings import Settings
from featherweight.integrations.load import load

SETTINGS = Settings(train=("norms", "factors", "signs"), rank=2)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caldera") / "out"
    quick = {"rank": 4, "grid": "uniform", "iterations": 1, "factor_iterations": 1, "scope": "model.layers.0.*"}
    changes = {**TINY, **{f"steps.0.{name}": value for name, value in quick.items()}}
    fw.compress(fw.plan("demo", "caldera-2bit", changes=changes), folder)
    return folder


def prepared(output: Path) -> torch.nn.Module:
    found = load(output, dtype=torch.float32)
    store_anew(found, SETTINGS)
    return found


@pytest.fixture
def model(output: Path) -> torch.nn.Module:
    return prepared(output)


def test_everything_that_is_not_rounded_is_in_the_files(output: Path) -> None:
    """Theirs forgot norms, the embedding and the last norm."""
    stored = {name for path in output.glob("model*.safetensors") for name in load_file(path)}
    dense = {name for name, _ in load(output).named_parameters()}
    assert dense <= stored | {"lm_head.weight"} and {"model.embed_tokens.weight", "model.norm.weight"} <= stored
    assert sum("layernorm" in name for name in stored) == sum("layernorm" in name for name in dense) > 0


def test_only_what_is_named_is_trainable(output: Path, model: torch.nn.Module) -> None:
    """Theirs left embeddings and norms trainable."""
    free = free_parameters(model, SETTINGS)
    trainable = {id(each): name for name, each in model.named_parameters() if each.requires_grad}
    assert set(trainable) == {id(each) for each in free.values()}
    assert not any("embed" in name or "head" in name or "bias" in name for name in trainable.values())
    other = prepared(output)
    only = free_parameters(other, Settings(train=("factors",), rank=2))
    assert {name for name, each in other.named_parameters() if each.requires_grad} < set(trainable.values())
    assert set(only) == {name for name in free if "left" in name or "right" in name}


def test_all_tensors_move_with_the_model_and_codes_need_no_gradient(output: Path, model: torch.nn.Module) -> None:
    """Theirs left indices on another device than the input, and tensors that were no parameters."""
    free_parameters(model, SETTINGS)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for module in model.modules():
        loose = [name for name, each in vars(module).items() if isinstance(each, torch.Tensor)]
        assert not loose, f"{type(module).__name__} holds {loose}, which no .to() moves"
    assert not any(each.requires_grad for each in held.values() if not each.is_floating_point())
    model.to("meta")
    assert all(each.is_meta for each in (*model.parameters(), *model.buffers()))
    plain = load(output)
    codes = {name: each for name, each in plain.named_buffers() if not each.is_floating_point()}
    assert len(codes) > 0 and not any(each.requires_grad for each in plain.buffers())
    assert all(each.is_meta for each in plain.to("meta").buffers())


def test_gradients_reach_all_that_is_free_and_only_that(model: torch.nn.Module) -> None:
    free = free_parameters(model, SETTINGS)
    model(input_ids=torch.arange(12)[None]).logits.square().mean().backward()
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in free.values())
    assert sum(each.grad is not None for each in model.parameters()) == len(free)
