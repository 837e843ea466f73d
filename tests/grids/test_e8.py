from __future__ import annotations

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters
from featherweight.grids.e8 import BEST_RMS, RESIDUAL_SCALE, E8Grid
from featherweight.grids.e8_codebook import base_vectors, codebook, nearest_codes, nearest_small_codes, small_codebook


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_codebook_is_65536_points_near_the_lattice():
    words = codebook()
    shift = torch.where((words - 0.25) * 2 % 2 == 1, 0.25, -0.25)[:, :1]
    halves = words - shift
    assert len(words.unique(dim=0)) == 65536
    assert bool((halves * 2 % 2 == 1).all())  # half-integers
    assert bool((halves.sum(1) % 2 == 0).all())  # of even sum
    assert torch.equal(base_vectors().square().sum(1).unique(return_counts=True)[1], torch.tensor([1, 8, 28, 64, 126, 29]))


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.03, 3.0])
def test_the_fast_search_is_as_near_as_brute_force(scale):
    vectors = (draw(1500, 8) * scale).double()
    nearest = torch.cdist(vectors, codebook().double()).amin(1)
    found = (vectors - codebook()[nearest_codes(vectors).long()]).norm(dim=1)
    torch.testing.assert_close(found, nearest, atol=1e-6, rtol=0)


def test_ties_and_codewords_are_found_too():
    words = codebook()[:: 65536 // 4096]
    assert torch.equal(codebook()[nearest_codes(words).long()], words)
    ties = torch.cat((torch.zeros(1, 8), torch.ones(1, 8), torch.tensor([[0.75, -0.75] * 4])))
    nearest = torch.cdist(ties.double(), codebook().double()).amin(1)
    torch.testing.assert_close((ties - codebook()[nearest_codes(ties).long()]).norm(dim=1).double(), nearest)


def test_the_small_codebook_is_the_lattices_shortest_vectors():
    words = small_codebook()
    assert len(words.unique(dim=0)) == 256
    assert torch.equal(words.square().sum(1).unique(return_counts=True)[1], torch.tensor([1, 240, 15]))
    vectors = draw(500, 8) * 0.7
    found = (vectors - words[nearest_small_codes(vectors).long()]).norm(dim=1)
    torch.testing.assert_close(found, torch.cdist(vectors, words).amin(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("bits", "error", "spaced"), [(2, 0.0915, 0.1188), (3, None, 0.0374), (4, None, 0.0115)])
def test_errors_on_normal_values(bits, error, spaced):
    """The 2-bit error is the published one; all are below those of the best equally spaced levels of as many bits."""
    values, grid = draw(20000, 8, seed=1), E8Grid(bits)
    parameters = GridParameters(torch.full((20000, 1), 1 / BEST_RMS[bits]), torch.zeros(20000, 1))
    found = float((grid.decode(grid.encode(values, parameters), parameters) - values).square().mean())
    assert found < spaced
    assert error is None or abs(found - error) < 0.001


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_decoded_values_encode_to_themselves_and_codes_use_their_bits(bits):
    values, grid = draw(64, 32), E8Grid(bits, rms=0.9)
    parameters = grid.fit(values)
    codes = grid.encode(values, parameters)
    assert codes.shape == (64, 4) and codes.dtype == torch.int32
    assert int((codes.long() & 0xFFFFFFFF).max()) <= grid.largest_code
    decoded = grid.decode(codes, parameters)
    first, second = codebook()[(codes & 0xFFFF).long()], decoded.view(64, 4, 8) / parameters.scale[..., None]
    if bits == 2:
        assert torch.equal(grid.encode(decoded, parameters), codes)
        torch.testing.assert_close(first, second)
    else:
        book = codebook() if bits == 4 else small_codebook()
        rest = book[(codes >> 16 & (0xFFFF if bits == 4 else 0xFF)).long()]
        torch.testing.assert_close(second, first + rest / RESIDUAL_SCALE[bits])
    assert float((values / parameters.scale).square().mean()) == pytest.approx(0.81, rel=1e-4)


def test_zeros_stay_zero_and_wrong_settings_are_refused():
    grid, zeros = E8Grid(), torch.zeros(2, 8)
    parameters = grid.fit(zeros)
    assert torch.equal(grid.decode(grid.encode(zeros, parameters), parameters), zeros)
    for make in (lambda: E8Grid(5), lambda: E8Grid(2, rms=0.0)):
        with pytest.raises(FeatherweightError):
            make()
