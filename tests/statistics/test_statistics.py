"""Sums that add up: batches, shards and ranks give one pass's statistics; the store gives back what it got."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featherweight import FeatherweightError
from featherweight.statistics.collector import Collector
from featherweight.statistics.halves import from_upper_half, mirror_, upper_half
from featherweight.statistics.inputs import InputStatistics
from featherweight.statistics.store import StatisticsStore, content_key

ALL = frozenset({"hessian", "sum_sq", "abs_max"})


def test_splitting_batches_changes_nothing() -> None:
    x = torch.randn(60, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = InputStatistics.from_inputs(x, ALL, torch.float64)
    parts = [InputStatistics.from_inputs(part, ALL, torch.float64) for part in x.split([1, 19, 40])]
    merged = parts[0] + parts[1] + parts[2]
    assert merged.count == whole.count == 60
    torch.testing.assert_close(merged.mean_hessian(), x.T @ x / 60)
    torch.testing.assert_close(merged.mean_sum_sq(), (x * x).mean(0))
    assert torch.equal(merged.abs_max, x.abs().amax(0))


def test_what_was_not_gathered_cannot_be_read() -> None:
    statistics = InputStatistics.from_inputs(torch.ones(3, 2), frozenset({"sum_sq"}))
    with pytest.raises(FeatherweightError, match="hessian was not gathered"):
        statistics.mean_hessian()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_named(bad: float) -> None:
    x = torch.ones(4, 3)
    x[2, 1] = bad
    with pytest.raises(FeatherweightError, match="not finite"):
        InputStatistics.from_inputs(x, ALL)


def test_store_gives_back_what_it_got_and_survives_a_broken_file(tmp_path: Path) -> None:
    store = StatisticsStore(tmp_path)
    sums = {"a": InputStatistics.from_inputs(torch.randn(5, 4), ALL)}
    key = content_key(model="m", block=0)
    store.save(key, sums)
    loaded = store.load(key, {"a": frozenset({"hessian"})})
    assert loaded is not None and loaded["a"].count == 5 and torch.equal(loaded["a"].hessian, sums["a"].hessian)
    assert store.load(key, {"b": ALL}) is None
    assert store.load(content_key(model="m", block=1), {"a": ALL}) is None
    other = content_key(model="n", block=0)
    (tmp_path / f"{other}.safetensors").write_bytes((tmp_path / f"{key}.safetensors").read_bytes())
    assert store.load(other, {"a": ALL}) is None, "a file of another model under this one's name"
    (tmp_path / f"{key}.safetensors").write_bytes(b"half a fi")
    assert store.load(key, {"a": ALL}) is None


@pytest.mark.parametrize("size", [1, 2, 7, 700])
def test_half_of_a_symmetric_matrix_tells_the_other(size: int) -> None:
    x = torch.randn(5, size)
    matrix = mirror_(x.T @ x)
    assert torch.equal(matrix, matrix.T)
    assert upper_half(matrix).numel() == size * (size + 1) // 2
    assert torch.equal(from_upper_half(upper_half(matrix)), matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_added_in_place_are_those_of_one_pass(dtype: torch.dtype) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = (3 * torch.randn(5, 40, 2100, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    sums = InputStatistics.zeros(2100, ALL, torch.float32, x.device)
    for part in x.split(2):
        sums = sums.add_(part)
    found, exact = sums.finished(), x.double().flatten(0, 1)
    assert found.count == 200 and found.hessian is not None and torch.equal(found.hessian, found.hessian.T)
    torch.testing.assert_close(found.hessian.double(), exact.T @ exact, rtol=1e-4, atol=2e-2)
    torch.testing.assert_close(found.sum_sq, found.hessian.diagonal())
    assert torch.equal(found.abs_max.double(), exact.abs().amax(0))


def test_a_collector_names_the_linear_whose_input_is_not_finite() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    collector = Collector({"first": "0", "second": "1"}, dict.fromkeys(("first", "second"), ALL), torch.float32)
    with pytest.raises(FeatherweightError, match="at the input of 0"), collector.attached(model), torch.no_grad():
        model(torch.tensor([[1.0, float("inf"), 0.0]]))
    assert not model[0]._forward_pre_hooks
