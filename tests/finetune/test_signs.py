"""Sign vectors of rotations as real vectors: exact at first, then trained, counted and reloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_strips import weight

import featherweight as fw
from common import TINY
from featherweight.api import finetune
from featherweight.errors import FeatherweightError
from featherweight.finetune.settings import Settings
from featherweight.models.source import resolve_model
from featherweight.models.transforms import Diagonal, Hadamard, ScaledHadamard
from featherweight.packed.base import described_bytes, from_tensors
from featherweight.packed.dense import Dense
from featherweight.packed.rotated import Rotated
from featherweight.packed.signs import real_signs, sign_vectors

FAST = {**TINY, "steps.0.passes": 0}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotated") / "out"
    fw.compress(fw.plan("demo", "quip-2bit", changes=FAST), folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in sorted(folder.glob("model*.safetensors")) for name, each in load_file(path).items()}


@pytest.mark.parametrize("size", [8, 12, 14])
@pytest.mark.parametrize("divides", [False, True])
def test_a_scaled_rotation_is_its_matrix(size: int, divides: bool) -> None:
    draw = torch.Generator().manual_seed(size)
    signs = 1.0 - 2.0 * torch.randint(0, 2, (size,), generator=draw)
    assert torch.equal(ScaledHadamard.of(Hadamard(signs, size), divides=divides).matrix(), Hadamard(signs, size).matrix())
    factors = signs.double() * (0.5 + torch.rand(size, generator=draw, dtype=torch.float64))
    scaled = ScaledHadamard(factors, size, divides=divides)
    matrix = scaled.matrix()
    exact = Hadamard(torch.ones(size), size).matrix() @ (1 / factors if divides else factors).diag()
    torch.testing.assert_close(matrix, exact)
    torch.testing.assert_close(scaled.transpose().matrix(), matrix.T)
    torch.testing.assert_close(scaled.inverse().matrix() @ matrix, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(scaled.contragredient().matrix() @ matrix.T, torch.eye(size, dtype=torch.float64))


def test_real_signs_keep_every_value_and_cost_a_factor_each() -> None:
    """`[32, 64]`, also inside a sum and beneath a diagonal: 16 bits in the place of 1."""
    whole = weight()
    real = real_signs(whole)
    assert sign_vectors(whole.description()) == [] and sign_vectors(real.description()) == ["input_factors", "output_factors"]
    assert torch.equal(real.dequantize(), whole.dequantize())
    assert real.nbytes - whole.nbytes == (64 + 32) * 15 // 8 and real.nbytes == described_bytes(real.description())
    beneath = Rotated.of(whole, Diagonal(torch.rand(64) + 0.5))
    assert sign_vectors(real_signs(beneath).description()) == ["inner_input_factors", "inner_output_factors"]
    read = from_tensors(real.description(), real.tensors())
    x = torch.randn(3, 64)
    torch.testing.assert_close(read.matmul(x), whole.matmul(x))


def test_gradients_of_both_vectors_are_those_of_the_dense_weight() -> None:
    """Against derivatives of `diag(v) H₂ᵀ Q H₁ diag(s)`, multiplied out."""
    draw = torch.Generator().manual_seed(3)
    inner, x = torch.randn(6, 8, generator=draw), torch.randn(5, 8, generator=draw)
    factors = {"input": torch.randn(8, generator=draw), "output": torch.randn(6, generator=draw)}
    ours = {side: each.clone().requires_grad_() for side, each in factors.items()}
    theirs = {side: each.clone().requires_grad_() for side, each in factors.items()}
    maps = ScaledHadamard(factors["input"], 8), ScaledHadamard(factors["output"], 6, divides=True)
    packed = Rotated.of(Dense(inner), *maps)
    stored = {**packed.tensors(), **{f"{side}_factors": each for side, each in ours.items()}}
    from_tensors(packed.description(), stored).matmul(x).square().sum().backward()
    first, second = (Hadamard(torch.ones(size), size).matrix().float() for size in (8, 6))
    dense = theirs["output"].diag() @ second.T @ inner @ first @ theirs["input"].diag()
    (x @ dense.T).square().sum().backward()
    for side in factors:
        torch.testing.assert_close(ours[side].grad, theirs[side].grad, rtol=1e-4, atol=1e-4)


def test_trained_signs_lower_the_divergence_and_nothing_else_changes(output: Path, tmp_path: Path) -> None:
    settings = Settings(
        task="distill", train=("signs",), length=64, samples=32, held_out=4, batch_size=2, every=8, learning_rate=5e-3
    )
    told = finetune(output, tmp_path / "out", settings, teacher=resolve_model("demo"), device="cpu").told
    assert told["after"] < 0.97 * told["before"] and told["accuracy"] is None
    fw.verify(tmp_path / "out")
    old, new = (json.loads((folder / "ledger.json").read_text()) for folder in (output, tmp_path / "out"))
    assert new["total"]["predicted_bytes"] - old["total"]["predicted_bytes"] == told["grown_bytes"] > 0
    assert new["total"]["linear_bits"] > old["total"]["linear_bits"]
    before, after = tensors(output), tensors(tmp_path / "out")
    factors = {name for name in after if name.endswith("put_factors")}
    assert told["trained"] == sum(after[name].numel() for name in factors)
    assert before.keys() - after.keys() == {name.replace("factors", "signs") for name in factors}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    assert any(bool((after[name].abs() != 1).any()) for name in factors)
    kl = [fw.evaluate(each, "heldout", against="demo", length=64, windows=8)[0].value for each in (output, tmp_path / "out")]
    assert kl[1] < kl[0]


def test_signs_of_weights_without_rotations_are_refused(tmp_path: Path) -> None:
    fw.compress(fw.plan("demo", "rtn-4bit", changes=TINY), tmp_path / "plain")
    with pytest.raises(FeatherweightError, match="no signs to train"):
        finetune(tmp_path / "plain", tmp_path / "out", Settings(train=("norms", "signs"), length=32, samples=4), device="cpu")
    assert not (tmp_path / "out").exists()
