from __future__ import annotations

import math

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models.hadamard import Construction, construct, construction_named
from featherweight.models.transforms import Hadamard

#: Widths of published models, and what makes their matrix.
WIDTHS = {
    576: "paley1(12)xpaley1(12)x2^2", 768: "paley1(12)x2^6", 1152: "paley1(12)xpaley1(12)x2^3", 1536: "paley1(12)x2^7",
    2048: "2^11", 3072: "paley1(12)x2^8", 4096: "2^12", 4864: "paley2(76)x2^6", 5120: "paley1(20)x2^8",
    11008: "williamson(172)x2^6", 13824: "paley1(12)xpaley1(12)xpaley1(12)x2^3", 14336: "paley1(28)x2^9",
    18944: "paley2(148)x2^7", 29568: "paley1(44)xpaley1(28)xpaley1(12)x2^1", 13696: "hartley(107)x2^7",
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12, 15, 20, 28, 36, 40, 52, 92, 100, 116, 124, 156, 172, 244, 344])
def test_small_matrices_are_orthogonal_and_flat(size):
    made = construct(size)
    matrix = made.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    bound = 2**0.5 if "hartley" in made.name else 1.0
    assert float(matrix.abs().max()) * size**0.5 < bound + 1e-9
    x = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.multiply(x), x @ matrix.T)
    torch.testing.assert_close(made.multiply(x, transposed=True), x @ matrix)


@pytest.mark.parametrize(("size", "name"), WIDTHS.items())
def test_widths_of_published_models(size, name):
    made = construct(size)
    assert made.name == name and construction_named(name) == made and made.size == size
    x = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = made.multiply(x)
    torch.testing.assert_close(made.multiply(mixed, transposed=True), x)
    torch.testing.assert_close(mixed.norm(dim=1), x.norm(dim=1))
    spike = torch.zeros(1, size, dtype=torch.float64)
    spike[0, size // 3] = 1.0
    assert float(made.multiply(spike).abs().max()) * size**0.5 < (1.0 if "hartley" not in name else 2**0.5) + 1e-9


def test_the_quadratic_characters_of_fields_that_are_no_primes():
    """Paley over GF(3³), GF(3²), GF(7³) gives Hadamard matrices, so that the squares there were the right ones; so does Williamson."""
    for name in ("paley1(28)", "paley2(20)", "paley1(344)", "williamson(172)"):
        matrix = construction_named(name).matrix() * math.sqrt(construction_named(name).size)
        assert torch.equal(matrix.round().abs(), torch.ones_like(matrix))
        assert float((matrix @ matrix.T - len(matrix) * torch.eye(len(matrix), dtype=torch.float64)).abs().max()) < 1e-9


def test_names_that_are_wrong_are_refused():
    for name in ("paley1(92)", "paley2(116)", "williamson(92)", "paley1(10)", "paley2(12)x3", "sylvester", "hartley"):
        with pytest.raises(FeatherweightError, match="unknown construction"):
            construction_named(name)
    with pytest.raises(FeatherweightError):
        construct(0)


def test_a_stored_construction_is_kept_and_half_precision_stays_close():
    signs = 1.0 - 2.0 * torch.randint(0, 2, (2, 48), generator=torch.Generator().manual_seed(1)).flatten()
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    stored = Hadamard(signs, 48, made="hartley(3)x2^4")
    assert stored.construction == Construction((("hartley", 3),), 4)
    assert not torch.allclose(stored.apply(x), Hadamard(signs, 48).apply(x))
    torch.testing.assert_close(stored.inverse().apply(stored.apply(x)), x)
    for map_ in (stored, Hadamard(signs, 96), Hadamard(signs, 96, inverted=True)):
        torch.testing.assert_close(map_.apply(x.bfloat16()).float(), map_.apply(x), atol=0.05, rtol=0.02)
