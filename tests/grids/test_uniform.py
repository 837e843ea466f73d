"""Uniform grids: the equations of min-max rounding, storage of scales, and what the searches promise."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import UniformGrid, store_scale

BITS = (2, 3, 4, 5, 6, 8)
SYMMETRIES = pytest.mark.parametrize("symmetric", [False, True])


def random_values(rows: int = 33, width: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("fit_by", ["minmax", "mse", "weighted"])
@SYMMETRIES
def test_codes_in_range_zero_exact_and_idempotent(bits, fit_by, symmetric):
    grid = UniformGrid(bits, symmetric, fit_by)
    values = random_values()
    values[:, 3] = 0
    parameters = grid.fit(values)
    codes = grid.encode(values, parameters)
    decoded = grid.decode(codes, parameters)
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1
    assert torch.equal(codes, codes.round())
    assert torch.equal(decoded[:, 3], torch.zeros(33))
    assert torch.equal(grid.encode(decoded, parameters), codes)
    assert torch.equal(parameters.zero, parameters.zero.round())
    assert parameters.zero.min() >= 0 and parameters.zero.max() <= 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_minmax_follows_the_equations(bits):
    values = random_values()
    grid = UniformGrid(bits, scale_dtype=torch.float32)
    parameters = grid.fit(values)
    low, high = values.amin(1, keepdim=True).clamp(max=0), values.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    assert torch.equal(parameters.scale, scale)
    assert torch.equal(parameters.zero, torch.round(-low / scale))
    error = (grid.decode(grid.encode(values, parameters), parameters) - values).abs()
    assert (error <= scale * 1.001).all()
    inside = (values > low + scale / 2) & (values < high - scale / 2)
    assert (error[inside] <= (scale / 2).expand_as(error)[inside] * 1.001).all()


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_range_and_fixed_zero(bits):
    values = random_values()
    parameters = UniformGrid(bits, symmetric=True, scale_dtype=torch.float32).fit(values)
    assert torch.equal(parameters.scale, 2 * values.abs().amax(1, keepdim=True) / (2**bits - 1))
    assert (parameters.zero == 2 ** (bits - 1)).all()


def test_zero_stays_inside_when_all_values_share_a_sign():
    values = random_values().abs() + 5
    for signed in (values, -values):
        grid = UniformGrid(4)
        parameters = grid.fit(signed)
        assert grid.decode(parameters.zero, parameters).abs().max() == 0
        error = (grid.decode(grid.encode(signed, parameters), parameters) - signed).abs()
        assert (error <= parameters.scale * 0.51).all()


@SYMMETRIES
@pytest.mark.parametrize("fit_by", ["minmax", "mse", "weighted"])
def test_rows_of_zeros_decode_to_zero(symmetric, fit_by):
    grid = UniformGrid(3, symmetric, fit_by)
    parameters = grid.fit(torch.zeros(4, 8))
    assert (parameters.scale > 0).all()
    assert grid.decode(grid.encode(torch.zeros(4, 8), parameters), parameters).abs().max() == 0


def test_rounding_is_half_to_even():
    grid = UniformGrid(4, scale_dtype=torch.float32)
    parameters = grid.fit(torch.tensor([[0.0, 15.0]]))
    assert grid.encode(torch.tensor([[0.5, 1.5, 2.5, 3.5]]), parameters).tolist() == [[0.0, 2.0, 2.0, 4.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-4, 1.0, 1e4, 1e7])
def test_scales_survive_their_storage_dtype(dtype, size):
    grid = UniformGrid(8, scale_dtype=dtype)
    values = random_values() * size
    parameters = grid.fit(values)
    assert torch.equal(parameters.scale.to(dtype).to(torch.float32), parameters.scale)
    assert torch.isfinite(parameters.scale).all() and (parameters.scale > 0).all()
    assert torch.isfinite(grid.decode(grid.encode(values, parameters), parameters)).all()


def test_scales_keep_their_sign():
    assert store_scale(torch.tensor([-1e-20, 0.0, 1e-20, 1e9]), torch.float16).tolist() == [-(2**-24), 2**-24, 2**-24, 65504.0]


@pytest.mark.parametrize("bits", [2, 3, 4])
@SYMMETRIES
def test_searches_never_lose_to_minmax(bits, symmetric):
    values = random_values(64, 128)
    importance = torch.rand(128, generator=torch.Generator().manual_seed(1)) ** 4

    def error(fit_by, norm, weights):
        grid = UniformGrid(bits, symmetric, fit_by)
        parameters = grid.fit(values, importance)
        return ((grid.decode(grid.encode(values, parameters), parameters) - values).abs() ** norm * weights).sum(1)

    assert (error("mse", 2.4, 1.0) <= error("minmax", 2.4, 1.0)).all()
    weighted = error("weighted", 2, importance)
    assert (weighted <= error("minmax", 2, importance)).all()
    assert weighted.mean() < 0.97 * error("mse", 2, importance).mean()


def test_importance_per_row_equals_rows_on_their_own():
    values, importance = random_values(6, 32), random_values(6, 32, 1).square()
    grid = UniformGrid(3, fit_by="weighted")
    together = grid.fit(values, importance)
    for row in range(6):
        alone = grid.fit(values[row : row + 1], importance[row])
        assert torch.equal(alone.scale[0], together.scale[row]) and torch.equal(alone.zero[0], together.zero[row])


@pytest.mark.parametrize("fit_by", ["mse", "weighted"])
def test_chunks_do_not_change_the_result(fit_by, monkeypatch):
    values, importance = random_values(50, 16), random_values(50, 16, 1).square()
    grid = UniformGrid(3, fit_by=fit_by)
    whole = grid.fit(values, importance)
    monkeypatch.setattr("featherweight.grids.search.CHUNK_ON_CPU", 100)
    chunked = grid.fit(values, importance)
    assert torch.equal(whole.scale, chunked.scale) and torch.equal(whole.zero, chunked.zero)


@pytest.mark.parametrize("fit_by", ["minmax", "mse", "weighted"])
def test_works_on_meta(fit_by):
    parameters = UniformGrid(4, fit_by=fit_by).fit(torch.empty(7, 9, device="meta"))
    assert parameters.scale.shape == parameters.zero.shape == (7, 1)


@pytest.mark.parametrize(
    "settings", [{"bits": 1}, {"bits": 9}, {"bits": 4, "fit_by": "best"}, {"bits": 4, "scale_dtype": torch.int8}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(FeatherweightError):
        UniformGrid(**settings)
