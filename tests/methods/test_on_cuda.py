"""Every method of second order on a GPU, against itself on the CPU; skipped where there is none."""

from dataclasses import replace

import pytest
import torch
from test_pruning_methods import make, relative_error

from featherweight.methods.alps import ALPS
from featherweight.methods.caldera import CALDERA
from featherweight.methods.gptq import GPTQ
from featherweight.methods.quip import QuIP
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR

METHODS = [
    GPTQ(group_size=32),
    SparseGPT(),
    SparseGPT(pattern="2:4"),
    SparseGPT(bits=4, group_size=32),
    SparseGPT(refit=5),
    SpQR(max_outlier_share=0.3),
    SpQR(fit="weighted", outlier_bits=8, max_outlier_share=0.3),
    ALPS(),
    QuIP(2),
    QuIP(4, rescale=True),
    CALDERA(rank=4),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_gpu_errs_as_the_cpu(method):
    problem = make(shapes=((24, 160), (8, 160)))
    there = replace(
        problem,
        weights={name: weight.cuda() for name, weight in problem.weights.items()},
        current={name: weight.to("cuda") for name, weight in problem.current.items()},
    )
    here = relative_error(problem, {name: done.weight for name, done in method.compress(problem).items()})
    gpu = {name: done.weight.to("cpu") for name, done in method.compress(there).items()}
    assert relative_error(problem, gpu) == pytest.approx(here, rel=0.05)
