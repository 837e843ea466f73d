"""How the work of integer products is best cut in a whole decode step: each kind of product tried in turn, the others as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from featherweight.decoding.coded import CodedRow
from featherweight.decoding.runner import Runner
from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.multiply import Shape, multiply

#: No block walks from one group of outputs to the next.
MANY = 1 << 20


def tune(runner: Runner, steps: int = 20) -> dict[str, str]:
    """Try some cuts of the integer products of each kind in the whole step, and keep the fastest; what was found."""
    found: dict[str, str] = {}
    first = runner.step.decoder.blocks[0]
    if isinstance(first.gate_up, CodedRow):
        products = (first.gate_up, first.qkv, first.output, first.down)
        plain = [shape for product in products for shape in cuts(product.weight.inputs, product.shape, False)]
        compile_together(
            {**dict.fromkeys(plain, False), **dict.fromkeys(cuts(first.gate_up.weight.inputs, first.gate_up.gated, True), True)}
        )
    for part in ("gate_up", "down", "qkv", "output"):
        product = getattr(runner.step.decoder.blocks[0], part)
        if not isinstance(product, CodedRow):
            return found
        field = "gated" if part == "gate_up" and product.gates else "shape"
        timed = []
        for shape in cuts(product.weight.inputs, getattr(product, field), field == "gated"):
            put(runner, part, {field: shape})
            try:
                timed.append((quick(runner, steps), shape))
            except FeatherweightError as problem:  # more shared memory than there is, for one
                print(part, shape, problem.found)
        best = min(timed, key=lambda pair: pair[0])
        put(runner, part, {field: best[1]})
        told = "  ".join(f"{1e3 * ms:.0f}" for ms, _ in timed)
        found[part] = f"{product.weight.rows}x{product.weight.inputs} {dataclasses.astuple(best[1])} of us {told}"
    return found


def compile_together(shapes: Mapping[Shape, bool]) -> None:
    """Build the kernels of these cuts, gated or not, for 4 bits side by side; what fails here fails again where it is used."""
    scales = torch.ones(64, 4, dtype=torch.bfloat16, device="cuda")
    weight = DeviceCodes.of(torch.zeros(64, 512, dtype=torch.uint8, device="cuda"), scales, None, 4, 128)

    def build(shape: Shape) -> None:
        torch.cuda.set_device(0)
        x = torch.zeros(1, 512, dtype=torch.bfloat16, device="cuda")
        gated = shapes[shape]
        multiply(x, weight, None, x.new_empty(1, 32 if gated else 64), shape, activation="silu" if gated else None)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(build, shape) for shape in shapes]:
            if done.exception() is not None:
                print(done.exception())
    torch.cuda.synchronize()


def cuts(inputs: int, own: Shape, gated: bool) -> list[Shape]:
    """The kernel's own choice first."""
    count, units = processors(torch.device("cuda")), inputs // 256
    if gated:
        tried = [Shape(256, 2, 1, warps, 16 // warps, 1, blocks) for warps in (8, 4, 6) if units % warps == 0 or warps == 8
                 for blocks in (16 // warps * count, MANY)]  # fmt: skip
    else:
        tried = [
            Shape(256, 1, 1, 8, 3, 1, 3 * count), Shape(256, 1, 1, 8, 3, 1, MANY), dataclasses.replace(own, blocks=MANY),
            Shape(512, 1, 2, max(1, min(8, inputs // 512)), 1, 1, count), Shape(256, 2, 1, 4, 4, 1, MANY),
        ]  # fmt: skip
    return list(dict.fromkeys([own, *tried]))


def put(runner: Runner, part: str, changes: Mapping[str, Shape]) -> None:
    """Another cut for one product of every block."""
    decoder = runner.step.decoder
    blocks = tuple(
        dataclasses.replace(block, **{part: dataclasses.replace(getattr(block, part), **changes)}) for block in decoder.blocks
    )
    runner.step.decoder = dataclasses.replace(decoder, blocks=blocks)
    runner._graphs.clear()


def quick(runner: Runner, steps: int) -> float:
    """Milliseconds of a step, from where the runner is."""
    held = runner.get_seq_length()
    runner.advance()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    marks[0].record()
    for _ in range(steps):
        runner.advance()
    marks[1].record()
    torch.cuda.synchronize()
    runner.crop(held)
    runner.step.chosen.position.fill_(held)
    return marks[0].elapsed_time(marks[1]) / steps
