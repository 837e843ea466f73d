"""The rotated codec: its levels are the best ones, its error is theirs, and its bytes buy more than QJL's."""

from itertools import pairwise
from math import sqrt

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.e8_codebook import codebook
from featherweight.kv_cache.qjl import QJL
from featherweight.kv_cache.rotated import Rotated, best_levels, lattice_tables

#: Mean square error of the best 2, 4, 8 and 16 levels for a normal number (Max 1960, table I).
NORMAL = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def round_trip(codec, exact, seed=3):
    constants = codec.constants(exact.shape[-1], torch.Generator().manual_seed(seed))
    return codec.decode(codec.encode(exact, constants), constants, torch.float32)


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_every_level_is_the_mean_of_its_cell(bits, head_dim):
    levels = best_levels(bits, head_dim)
    edges = [-sqrt(head_dim), *((low + high) / 2 for low, high in pairwise(levels)), sqrt(head_dim)]
    for level, (low, high) in zip(levels, pairwise(edges), strict=True):
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        density = (1 - x.square() / head_dim).clamp(min=0).pow((head_dim - 3) / 2)
        assert level == pytest.approx(float(torch.trapezoid(x * density, x) / torch.trapezoid(density, x)), abs=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_error_is_that_of_the_best_levels_whatever_the_vector(bits):
    levels = torch.tensor(best_levels(bits, 10**6))
    normal = draw(10**6)
    assert float((levels[(normal.unsqueeze(1) - levels).abs().argmin(1)] - normal).pow(2).mean()) == pytest.approx(
        NORMAL[bits], rel=0.01
    )
    # a coded direction of the full length: |x̂ − x|² = 2 − 2 √(1 − D)
    expected = 2 - 2 * sqrt(1 - NORMAL[bits])
    flat = draw(1, 1, 512, 128)
    spiky = flat * torch.logspace(0, 2, 128)  # a few channels hold nearly everything: no worse
    errors = [float((round_trip(Rotated(bits=bits), exact) - exact).norm() / exact.norm()) ** 2 for exact in (flat, spiky)]
    assert errors[0] == pytest.approx(expected, rel=0.04) and 0.8 * expected < errors[1] < 1.04 * expected


def test_the_lattice_tables_make_every_codeword():
    tables = lattice_tables()
    words = tables["levels"][:, None] * tables["signs"] + tables["shift"]
    assert torch.equal(words.view(-1, 8), codebook())


def test_the_lattice_errs_by_a_fifth_less_and_as_published():
    exact = draw(1, 1, 1024, 128)
    errors = [
        float((round_trip(Rotated(bits=2, lattice=lattice), exact) - exact).norm() / exact.norm()) ** 2
        for lattice in (False, True)
    ]
    assert errors[1] == pytest.approx(2 - 2 * sqrt(1 - 0.0915), rel=0.03)  # QuIP#'s E8P on normal values
    assert errors[1] < 0.81 * errors[0]


@pytest.mark.parametrize("head_dim", [64, 80])
def test_the_residual_keeps_its_length(head_dim):
    exact = draw(1, 2, 64, head_dim) + 5 * draw(head_dim, seed=1)
    mean = exact.unflatten(2, (2, 32)).mean(3, keepdim=True)
    codec = Rotated(bits=2, group_size=32)
    for found, expected in zip(round_trip(codec, exact).unflatten(2, (2, 32)), exact.unflatten(2, (2, 32)), strict=True):
        assert torch.allclose((found - mean[0]).norm(dim=-1), (expected - mean[0]).norm(dim=-1), rtol=1e-4)


def test_means_are_stored_once_a_group_and_taken_away():
    exact = draw(1, 1, 128, 64) + 10 * draw(64, seed=1)
    plain, centred = ((round_trip(codec, exact) - exact).norm() for codec in (Rotated(bits=2), Rotated(bits=2, group_size=64)))
    assert centred < 0.2 * plain
    constant = (3 * draw(64, seed=2)).expand(1, 1, 64, 64)
    assert torch.allclose(round_trip(Rotated(group_size=64, balance=True), constant), constant, atol=1e-5)


def test_balance_spares_quiet_channels():
    scale = torch.where(torch.arange(64) < 8, 30.0, 1.0)
    exact = draw(1, 1, 128, 64) * scale
    even, balanced = (
        (round_trip(codec, exact) - exact)[..., 8:].norm()
        for codec in (Rotated(group_size=128), Rotated(group_size=128, balance=True))
    )
    assert balanced < 0.5 * even


@pytest.mark.parametrize("offset", [0.0, 2.0])
@pytest.mark.parametrize(
    ("sketch", "ours"),
    [
        (QJL(sketch=256), Rotated(bits=3, group_size=128)),
        (QJL(sketch=256), Rotated(bits=4)),
        (QJL(sketch=256, outliers=0), Rotated(bits=2)),
        (QJL(sketch=512, outlier_sketch=128), Rotated(bits=4, group_size=128, balance=True)),
    ],
)
def test_it_scores_better_than_sketches_of_more_bytes(sketch, ours, offset):
    keys = draw(1, 2, 128, 128) + offset * draw(128, seed=1)
    query = draw(1, 2, 16, 128, seed=2)
    exact = query @ keys.transpose(-1, -2)
    errors = [
        float((query @ round_trip(codec, keys).transpose(-1, -2) - exact).norm() / exact.norm()) for codec in (sketch, ours)
    ]
    assert ours.stored_bits(128, torch.bfloat16) <= sketch.stored_bits(128, torch.bfloat16)
    assert errors[1] < errors[0]


def test_windows_slide_without_groups_and_fall_due_with_them():
    assert [Rotated(window=16).settled(total) for total in (0, 16, 17, 40)] == [0, 0, 1, 24]
    grouped = Rotated(group_size=16, window=32)
    assert [grouped.settled(total) for total in (0, 31, 32, 63, 64)] == [0, 0, 32, 32, 64]


def test_bits_are_all_that_is_stored():
    assert Rotated(bits=2).stored_bits(64, torch.bfloat16) == 2.25
    assert Rotated(bits=3, group_size=128).stored_bits(128, torch.float16) == 3.25
    assert Rotated(bits=3, group_size=128, balance=True).stored_bits(128, torch.float16) == 3.375


def test_a_head_that_does_not_fill_bytes_is_refused():
    with pytest.raises(FeatherweightError, match="multiple of 8"):
        Rotated().check(20)
