import pytest
import torch
from emulation import emulation, needs_compiler  # noqa: F401

from featherweight.kernels.cuda import hadamard, lattice
from featherweight.packed.lattice_device import to_device
import sys; sys.path.insert(0, "benchmarks")
from lattice_weights import random_weight

def err(a, b):
    return float((a.double() - b).norm() / b.norm())

@needs_compiler
@pytest.mark.parametrize(("rows", "inputs", "bits", "rank", "tokens", "dtype"), [
    (64, 512, 2, 0, 1, torch.bfloat16),
    (192, 256, 2, 37, 3, torch.float16),
    (192, 768, 3, 16, 5, torch.float32),
    (320, 512, 4, 16, 9, torch.bfloat16),
    (3072, 1024, 2, 70, 2, torch.bfloat16),
 (1024, 7168, 2, 16, 1, torch.float16),
])
def test_x(emulation, monkeypatch, rows, inputs, bits, rank, tokens, dtype):
    monkeypatch.setattr(hadamard, '_cluster', lambda size, twos, rows: 8 if size >= 1024 and size // 64 % 16 == 0 and twos >= 7 else 1)
    monkeypatch.setattr(lattice, "processors", lambda device: 3)
    weight = random_weight(rows, inputs, bits, rank, "cpu")
    device = to_device(weight)
    x = torch.randn(tokens, inputs).to(dtype)
    a = weight.input.apply(x.double())
    p = hadamard.rotate_for_product(x, device.input, device.right)
    order = torch.tensor([0,1,2,3,8,9,10,11,4,5,6,7,12,13,14,15])
    v = (p.planes[:, 0].double() * 256 + p.planes[:, 1]).view(tokens, -1, 16)
    u = torch.empty_like(v); u[..., order] = v
    print(err(u.view(tokens, -1)[:, :inputs] * p.steps.double()[:, None], a))
    if rank: print("t", err(p.projected[:, :rank], a @ weight.inner.terms[1].right.dequantize().double().T))
    y = lattice.multiply_rotated(p, device.inner, torch.float32).sum(0)
    print("inner", err(y, weight.inner.matmul(a)))
    got = lattice.multiply(x, device)
    print(err(got, weight.matmul(x.double())))
    assert err(got, weight.matmul(x.double())) < (3e-3 if dtype == torch.bfloat16 else 1e-3)
