"""SpQR's grid: both levels by hand, tails of rows, leaving one out against brute force."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters
from featherweight.grids.two_level import TwoLevelGrid, decode_second_level
from featherweight.solvers.outliers import gains_of_leaving_out, replace_likely_outliers


def values(rows=40, width=16, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("round_zero", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_a_second_level_the_range_is_met(bits, round_zero):
    grid, weight = TwoLevelGrid(bits, None, None, round_zero=round_zero), values() + 0.03
    parameters = grid.fit(weight)
    decoded = grid.decode(grid.encode(weight, parameters), parameters)
    assert ((decoded - weight).abs() <= parameters.scale * (1.01 if round_zero else 0.51)).all()
    assert torch.equal(grid.encode(decoded, parameters), grid.encode(weight, parameters))
    if round_zero:
        assert torch.equal(parameters.zero, parameters.zero.round()) and parameters.zero.min() >= 0
    else:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        torch.testing.assert_close(parameters.scale, (high - low) / (2**bits - 1), rtol=1e-3, atol=0)
        torch.testing.assert_close(-parameters.zero * parameters.scale, low, rtol=5e-3, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_second_level_by_hand(rows):
    grid, weight = TwoLevelGrid(4, 3, 3), values(rows)
    fitted = grid.fit(weight)
    scale = (weight.amax(1) - weight.amin(1)) / 15
    zero = -weight.amin(1) / scale
    for stored, wanted in ((fitted.scales, scale), (fitted.zeros, zero)):
        assert stored.codes.shape == (rows, 1) and stored.grids.shape == (-(-rows // 16), 1, 2)
        assert stored.grids.dtype == torch.float16 and stored.codes.max() <= 7
        assert torch.equal(decode_second_level(stored.codes, stored.grids, 16), stored.values)
        for start in range(0, rows, 16):
            block, back = wanted[start : start + 16], stored.values[start : start + 16, 0]
            step = max((block.max() - block.min()) / 7, block.abs().max() * 1e-3)
            assert ((back - block).abs() <= 0.52 * step).all()
    assert torch.equal(fitted.scale, fitted.scales.values) and torch.equal(fitted.zero, fitted.zeros.values)


def test_what_is_symmetric_or_rounded_is_stored_so():
    symmetric = TwoLevelGrid(3, symmetric=True).fit(values())
    assert symmetric.zeros is None and (symmetric.zero == 4).all()
    rounded = TwoLevelGrid(3, 3, 3, round_zero=True).fit(values())
    assert rounded.zeros.grids is None and torch.equal(rounded.zeros.codes.float(), rounded.zero)
    assert TwoLevelGrid(4, 3, 3, round_zero=True).fit(values()).zeros.grids is not None


def test_constants_and_zeros_come_back():
    weight = values(32)
    weight[3], weight[7], weight[20:] = 0.0, 0.04, 0.0
    for grid in (TwoLevelGrid(4), TwoLevelGrid(4, None, None)):
        parameters = grid.fit(weight)
        decoded = grid.decode(grid.encode(weight, parameters), parameters)
        assert decoded[3].abs().max() <= parameters.scale[3] and parameters.scale[3] < 0.05
        assert torch.isfinite(decoded).all()
    exact = TwoLevelGrid(4).fit(torch.full((16, 8), 0.04))
    decoded = TwoLevelGrid(4).decode(TwoLevelGrid(4).encode(torch.full((16, 8), 0.04), exact), exact)
    torch.testing.assert_close(decoded, torch.full((16, 8), 0.04), rtol=2e-3, atol=0)
    assert TwoLevelGrid(4).fit(torch.zeros(16, 8)).scale.isfinite().all()


def brute_force(grid, weight, importance):
    def error(fitted_to, measured, weights):
        parameters = grid.between(fitted_to.amin(1, keepdim=True), fitted_to.amax(1, keepdim=True))
        decoded = grid.decode(grid.encode(measured, parameters), parameters)
        return ((decoded - measured).square() * weights).sum(1)

    width = weight.shape[1]
    gains = torch.empty_like(weight)
    for left_out in range(width):
        others = [column for column in range(width) if column != left_out]
        without = error(weight[:, others], weight[:, others], importance[others])
        gains[:, left_out] = error(weight, weight, importance) - without
    return gains


@pytest.mark.parametrize("width", [2, 3, 16])
@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"round_zero": True}])
def test_three_fits_tell_what_leaving_each_one_out_gains(width, settings):
    grid, weight = TwoLevelGrid(3, **settings), values(50, width)
    weight[0], weight[1] = 0.0, 0.02
    weight[2, :2] = weight[2].max() + 0.01  # the largest value twice
    weight[3, 1] = 5.0
    importance = torch.rand(width, generator=torch.Generator().manual_seed(1)) + 0.1
    expected = brute_force(grid, weight, importance)
    torch.testing.assert_close(gains_of_leaving_out(grid, weight, importance), expected, atol=2e-6, rtol=1e-4)


def test_a_planted_weight_shrinks_the_range():
    grid, weight, importance = TwoLevelGrid(3, None, None), values(), torch.ones(16)
    planted = weight.clone()
    planted[5, 9] = 3.0
    cleaned = replace_likely_outliers(grid, planted, importance, 0.1)
    assert torch.equal(cleaned != planted, planted == 3.0)
    others = torch.cat([weight[5, :9], weight[5, 10:]])
    torch.testing.assert_close(cleaned[5, 9], others.mean())
    assert grid.fit(cleaned).scale[5] < 0.1 * grid.fit(planted).scale[5]


@pytest.mark.parametrize("settings", [{"bits": 9}, {"scale_bits": 0}, {"zero_bits": 2.5}, {"second_group_size": 0}])
def test_bad_settings(settings):
    with pytest.raises(FeatherweightError, match=next(iter(settings))):
        TwoLevelGrid(**{"bits": 3, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"symmetric": True}, {"round_zero": True}, {"scale_bits": None, "zero_bits": None}], ids=str
)
def test_the_weighted_fit_errs_less_and_stores_what_it_says(settings):
    generator = torch.Generator().manual_seed(0)
    values, importance = torch.randn(50, 16, generator=generator), torch.rand(16, generator=generator)
    errors = {}
    for fit_by in ("minmax", "weighted"):
        grid = TwoLevelGrid(3, **{"second_group_size": 20, **settings}, fit_by=fit_by)
        fitted = grid.fit(values, importance)
        errors[fit_by] = float(((grid.decode(grid.encode(values, fitted), fitted) - values).square() * importance).sum())
        assert torch.equal(fitted.scale, fitted.scales.values)
        if fitted.scales.codes is not None:
            again = decode_second_level(fitted.scales.codes, fitted.scales.grids, 20)
            assert torch.equal(again, fitted.scale) and int(fitted.scales.codes.max()) <= 7
    assert errors["weighted"] < 0.85 * errors["minmax"]


def test_the_weighted_fit_finds_the_best_pair_of_stored_codes():
    generator = torch.Generator().manual_seed(1)
    values, importance = torch.randn(6, 8, generator=generator), torch.rand(8, generator=generator)
    grid = TwoLevelGrid(3, 1, 1, 6, fit_by="weighted")  # both codes are near
    fitted = grid.fit(values, importance)
    everywhere = torch.arange(2, dtype=torch.uint8)[None].expand(6, 2)
    scales = decode_second_level(everywhere, fitted.scales.grids, 6)
    zeros = decode_second_level(everywhere, fitted.zeros.grids, 6)
    for row in range(6):
        errors = []
        for scale in scales[row]:
            for zero in zeros[row]:
                parameters = GridParameters(scale, zero)
                decoded = grid.decode(grid.encode(values[row], parameters), parameters)
                errors.append(float(((decoded - values[row]).square() * importance).sum()))
        parameters = GridParameters(fitted.scale[row], fitted.zero[row])
        found = float(
            ((grid.decode(grid.encode(values[row], parameters), parameters) - values[row]).square() * importance).sum()
        )
        assert found <= min(errors) * (1 + 1e-6)


def test_symmetric_second_grids_of_zeros():
    weight = values(32)
    plain, symmetric = TwoLevelGrid(3).fit(weight), TwoLevelGrid(3, zero_symmetric=True).fit(weight)
    assert torch.equal(plain.scale, symmetric.scale)
    assert (symmetric.zeros.grids[..., 1] == 4).all()
    largest = (
        TwoLevelGrid(3).between(weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)).zero.view(2, 16).abs().amax(1)
    )
    torch.testing.assert_close(symmetric.zeros.grids[:, 0, 0].float(), 2 * largest / 7, atol=2e-3, rtol=1e-3)
    assert torch.equal(decode_second_level(symmetric.zeros.codes, symmetric.zeros.grids, 16), symmetric.zero)
