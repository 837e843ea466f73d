"""Products in halves: their error is that of the halves."""

import pytest
import torch

from featherweight.kernels.split import add_split_product_, halves, row_of_halves, split_product, stacked_halves


def make():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 70, generator=generator), torch.randn(70, 30, generator=generator)
    return left * torch.logspace(-6, 6, 40)[:, None], right


def test_halves_add_up():
    matrix = make()[0]
    high, low = halves(matrix)
    assert high.dtype == low.dtype == torch.bfloat16
    assert ((high.float() + low.float() - matrix).abs() <= 2.0**-17 * matrix.abs()).all()


def test_three_products_of_halves_suffice():
    left, right = make()
    (high, low), (right_high, right_low) = ([half.float() for half in halves(each)] for each in (left, right))
    product = high @ right_high + high @ right_low + low @ right_high
    exact = left.double() @ right.double()
    assert ((product - exact).norm(dim=1) <= 2e-5 * exact.norm(dim=1)).all()
    joined = row_of_halves(left).float() @ stacked_halves(right).float()
    assert ((joined - exact).norm(dim=1) <= 2e-5 * exact.norm(dim=1)).all()
    assert torch.equal(split_product(left, right), left @ right)  # on a CPU nothing is split
    total = torch.zeros(40, 30)
    add_split_product_(total, halves(left.t().contiguous()), stacked_halves(right))
    torch.testing.assert_close(total, product)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    left, right = (each.cuda() for each in make())
    exact, total = left.double() @ right.double(), torch.zeros(40, 30, device="cuda")
    add_split_product_(total, halves(left.t().contiguous()), stacked_halves(right))
    for product in (split_product(left, right), total):
        assert ((product - exact).norm(dim=1) <= 2e-5 * exact.norm(dim=1)).all()
