"""Which rank compresses which linear: by predicted cost, the longest first, each to the rank that is done first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featherweight.models.axis import Axis
from featherweight.planning.plan import Plan


@dataclass(frozen=True)
class Job:
    """A linear to compress.

    Attributes:
        name: of the linear.
        axis: whose input it reads.
        cost: operations of its own.
        shared: operations once for all linears of the axis on a rank: factorising the Hessian.
    """

    name: str
    axis: str
    cost: float
    shared: float


def deal(jobs: Sequence[Job], count: int) -> dict[str, int]:
    """A rank for every job, such that the longest rank ends early (Graham 1969, longest processing time first).

    Linears of one input go to one rank, unless factorising its Hessian twice is quicker.
    """
    loads, held = [0.0] * count, [set[str]() for _ in range(count)]
    dealt: dict[str, int] = {}
    for job in sorted(jobs, key=lambda job: (-(job.cost + job.shared), job.name)):
        ends = [load + job.cost + (0.0 if job.axis in axes else job.shared) for load, axes in zip(loads, held, strict=True)]
        rank = min(range(count), key=lambda each: (ends[each], each))
        loads[rank] = ends[rank]
        held[rank].add(job.axis)
        dealt[job.name] = rank
    return dealt


def jobs_of(plan: Plan, block: str, axes: Sequence[Axis]) -> list[Job]:
    """The linears of these axes that have a chain; `out · in²` a step that reads the Hessian, `out · in` any other."""
    shapes = {linear.name: linear.shape for linear in plan.linears(block)}
    jobs = []
    for axis in axes:
        for name in axis.consumers:
            chain = plan.chains.linears.get(name, ())
            if not chain:
                continue
            rows, columns = shapes[name]
            reading = sum("hessian" in method.requires for method in chain)
            cost = rows * columns * (columns * reading + len(chain) - reading)
            jobs.append(Job(name, axis.name, float(cost), float(reading * columns**3)))
    return jobs
