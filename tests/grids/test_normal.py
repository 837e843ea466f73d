"""Normal-float grids: the published levels, zero exact, nearest level, and less error than equal steps on normal values."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.normal import NormalGrid, normal_levels
from featherweight.grids.uniform import UniformGrid

#: QLoRA's table (arXiv:2305.14314, appendix E), to the digits that float32 holds.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip


def test_four_bits_are_the_published_levels():
    torch.testing.assert_close(normal_levels(4), torch.tensor(NF4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_level_and_zero(bits):
    grid, values = NormalGrid(bits), torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    values[:, 3] = 0
    parameters = grid.fit(values)
    codes = grid.encode(values, parameters)
    decoded = grid.decode(codes, parameters)
    brute = (values[..., None] - normal_levels(bits) * parameters.scale[..., None]).abs().min(-1).values
    torch.testing.assert_close((values - decoded).abs(), brute, rtol=0, atol=1e-6)
    assert not decoded[:, 3].any() and torch.equal(grid.encode(decoded, parameters), codes)
    assert len(normal_levels(bits)) == 2**bits and bool((normal_levels(bits).diff() > 0).all())
    assert not grid.decode(grid.encode(torch.zeros(2, 8), grid.fit(torch.zeros(2, 8))), grid.fit(torch.zeros(2, 8))).any()


def test_on_normal_values_it_beats_equal_steps_of_the_same_range():
    values = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))

    def error(grid):
        parameters = grid.fit(values)
        return float((grid.decode(grid.encode(values, parameters), parameters) - values).square().mean())

    assert error(NormalGrid(4)) < 0.9 * error(UniformGrid(4, symmetric=True))


def test_bits_that_it_does_not_have():
    with pytest.raises(FeatherweightError, match="2, 3, 4, 8"):
        NormalGrid(5)
