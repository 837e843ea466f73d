"""Floating grids: every number of the formats, the nearest by brute force and by torch's casts, scales as stored."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import E2M1, E4M3, FloatingGrid

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
GRIDS = [("e4m3", torch.bfloat16), ("e4m3", torch.float8_e8m0fnu), ("e2m1", torch.float16),
         ("e2m1", torch.float8_e4m3fn), ("e2m1", torch.float8_e8m0fnu)]  # fmt: skip
FITS = pytest.mark.parametrize("fit_by", ["minmax", "mse", "weighted"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_formats_own():
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).float()
    real = numbers.isfinite()  # all but the two patterns of NaN
    assert torch.equal(E4M3.decode(codes)[real], numbers[real]) and real.sum() == 254
    assert E2M1.decode(torch.arange(16)).tolist() == FP4 + [-number for number in FP4]
    for element, zero in ((E4M3, 128), (E2M1, 8)):
        patterns = torch.arange(2**element.bits - 1)[: 127 if element is E4M3 else 8]
        both = torch.cat([patterns, patterns[1:] + zero])
        assert torch.equal(element.encode(element.decode(both)), both.float())
        assert element.encode(element.decode(torch.tensor([zero]))).item() == 0  # −0 is written as 0


def test_e4m3_is_torchs_cast():
    values = torch.cat([draw(4000) * torch.logspace(-4, 3, 4000), torch.tensor([0.0, 1e-9, 448.0, 464.0, 1e9, 2**-10])])
    values = torch.cat([values, -values])
    assert torch.equal(E4M3.nearest(values), values.clamp(-448, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("element", [E4M3, E2M1])
def test_nearest_of_all_numbers_and_ties_to_even(element):
    numbers = element.decode(torch.arange(2**element.bits)).unique()
    values = draw(3000) * element.largest / 2
    found = (values - element.nearest(values)).abs()
    assert torch.equal(found, (values[:, None] - numbers).abs().amin(1))
    halfway = (numbers[1:] + numbers[:-1]) / 2
    assert (element.encode(element.nearest(halfway)) % 2 == 0).all()
    assert element.nearest(torch.tensor([1e30, -1e30])).tolist() == [element.largest, -element.largest]


@pytest.mark.parametrize(("element", "scale_dtype"), GRIDS)
@FITS
def test_zeros_are_exact_and_scales_those_that_are_stored(element, scale_dtype, fit_by):
    values = draw(33, 40) * torch.logspace(-3, 1, 33)[:, None]
    values[:, 3], values[5] = 0, 0
    grid = FloatingGrid(element, scale_dtype, fit_by).over(values)
    parameters = grid.fit(values)
    codes = grid.encode(values, parameters)
    decoded = grid.decode(codes, parameters)
    assert not decoded[:, 3].any() and not decoded[5].any() and (parameters.scale > 0).all()
    assert codes.min() >= 0 and codes.max() <= grid.largest_code and torch.equal(codes, codes.round())
    stored = grid.stored_scale(parameters.scale)
    assert stored.dtype == scale_dtype and torch.equal(stored.float() * grid.tensor_scale, parameters.scale)
    assert torch.equal(grid.encode(decoded, parameters), codes)
    assert ((decoded - values).square().sum(1) <= 0.04 * values.square().sum(1)).all()


def test_scales_of_the_two_standards():
    values = torch.tensor([[6.0, 1.0], [7.9, 1.0], [8.0, 1.0], [0.1, 0.01]])
    scale = FloatingGrid("e2m1", torch.float8_e8m0fnu).fit(values).scale
    assert scale.flatten().tolist() == [1.0, 1.0, 2.0, 2.0**-6]  # 2^(⌊log2 max⌋ − 2)
    grid = FloatingGrid("e2m1", torch.float8_e4m3fn).over(values)
    assert grid.tensor_scale == pytest.approx(8.0 / (6 * 224))
    exact = values.amax(1, keepdim=True) / 6 / grid.tensor_scale
    assert torch.equal(grid.stored_scale(grid.fit(values).scale).float(), exact.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(("element", "scale_dtype"), GRIDS)
def test_searches_lower_what_they_minimise(element, scale_dtype):
    values, importance = draw(50, 32), torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.01

    def error(fit_by, weights, power):
        grid = FloatingGrid(element, scale_dtype, fit_by).over(values)
        parameters = grid.fit(values, importance)
        residual = (grid.decode(grid.encode(values, parameters), parameters) - values).abs()
        return (residual**power * weights).sum(1)

    assert (error("weighted", importance, 2) <= error("minmax", importance, 2) * 1.0001).all()
    assert (error("mse", 1.0, 2.4) <= error("minmax", 1.0, 2.4) * 1.0001).all()
    if element == "e2m1":
        assert error("weighted", importance, 2).sum() < 0.99 * error("minmax", importance, 2).sum()


def test_settings_outside_their_ranges():
    for settings in ({"element": "e5m2"}, {"element": "e2m1", "scale_dtype": torch.int8}, {"element": "e2m1", "fit_by": "x"}):
        with pytest.raises(FeatherweightError, match="unknown"):
            FloatingGrid(**settings)
