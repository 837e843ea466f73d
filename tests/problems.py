"""Small problems for methods, and running chains on them."""

from dataclasses import replace

import torch

from featherweight.methods.base import Problem
from featherweight.methods.block_run import BlockRun
from featherweight.packed.base import empty
from featherweight.packed.dense import Dense
from featherweight.statistics.inputs import InputStatistics


def make(shapes=((24, 80), (8, 80)), dtype=torch.bfloat16, seed=0, identity=False):
    """Linears of one input, correlated unless `identity`."""
    generator = torch.Generator().manual_seed(seed)
    width = shapes[0][1]
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + 0.3
    x = torch.randn(400, width, generator=generator) @ mixing * (torch.rand(width, generator=generator) * 2 + 0.1)
    x = torch.eye(width) if identity else x
    dense = {f"linear{i}": (torch.randn(*shape, generator=generator) * 0.05).to(dtype) for i, shape in enumerate(shapes)}
    statistics = InputStatistics.from_inputs(x, needs=frozenset({"hessian", "samples"}))
    weights = {name: weight.float() for name, weight in dense.items()}
    return Problem(weights, {name: Dense(weight) for name, weight in dense.items()}, statistics, dtype)


def run(problem, *chain):
    """What each linear is stored as after the chain; each step as planned, and no zero comes back."""
    facts = {}
    for method in chain:
        after = {}
        for name, compressed in method.compress(problem).items():
            before = problem.current[name]
            planned = method.storage(before.description(), problem.dtype)
            assert compressed.weight.description() == planned
            assert empty(planned).nbytes == compressed.weight.nbytes
            if before.support is not None:
                assert not compressed.weight.dequantize()[~before.support].any()
            after[name], facts[name] = compressed.weight, compressed.facts
        problem = replace(problem, current=after)
    return problem.current, facts


def relative_error(problem, current):
    """Mean over linears of `tr(E H Eᵀ) / tr(W H Wᵀ)`."""
    hessian = problem.statistics.mean_hessian().double()
    errors = []
    for name, weight in problem.weights.items():
        error = (weight - current[name].dequantize()).double()
        errors.append(float(((error @ hessian) * error).sum() / ((weight.double() @ hessian) * weight.double()).sum()))
    return sum(errors) / len(errors)


def block_run(*chain, broken=False):
    """`relu(x W0ᵀ) + x W1ᵀ` stands for a block, after a chain; its linears as a problem, and what they are stored as."""
    problem = make(((24, 32), (24, 32)), torch.float32)
    weights = dict(problem.weights)
    current = run(problem, *chain)[0]
    x = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(5))

    def forward(batch, overrides):
        used = {name: overrides.get(name, current[name].dequantize()) for name in weights}
        if broken:
            used = {name: weight.detach() for name, weight in used.items()}
        return torch.relu(x[batch] @ used["linear0"].T) + x[batch] @ used["linear1"].T

    def reference(batch):
        return torch.relu(x[batch] @ weights["linear0"].T) + x[batch] @ weights["linear1"].T

    statistics = dict.fromkeys(weights, problem.statistics)
    return problem, current, BlockRun("block", weights, current, statistics, 4, reference, forward)
