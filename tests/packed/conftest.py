"""A quantized weight beside the values its grid decoded."""

import pytest
import torch

from featherweight.grids.uniform import UniformGrid
from featherweight.packed.integer import Integer


def make_quantized(shape=(6, 40), bits=3, group_size=16, symmetric=False, dtype=torch.float16, dynamic=False, seed=0):
    """An integer weight and the values that its grid decoded."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator)
    order = torch.randperm(shape[1], generator=generator) if dynamic else torch.arange(shape[1])
    grid = UniformGrid(bits, symmetric, scale_dtype=dtype)
    size = group_size or shape[1]
    codes, decoded, scales, zeros = torch.empty_like(values), torch.empty_like(values), [], []
    index = torch.empty(shape[1], dtype=torch.int16)
    for group, start in enumerate(range(0, shape[1], size)):
        columns = order[start : start + size]
        parameters = grid.fit(values[:, columns])
        codes[:, columns] = grid.encode(values[:, columns], parameters)
        decoded[:, columns] = grid.decode(codes[:, columns], parameters)
        index[columns] = group
        scales.append(parameters.scale)
        zeros.append(parameters.zero)
    stored_zeros = None if symmetric else torch.cat(zeros, 1)
    scales = torch.cat(scales, 1).to(dtype)
    weight = Integer.from_codes(codes.to(torch.uint8), scales, stored_zeros, bits, group_size, index if dynamic else None)
    return weight, decoded


@pytest.fixture
def quantized():
    return make_quantized
