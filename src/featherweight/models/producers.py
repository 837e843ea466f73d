"""What makes an axis, and which maps of it are exact: found by trying them on blocks with random weights in float64.

No family is listed here. A guess (this norm, these rows of that linear) is taken up only if folding a random map into a
random block leaves its output unchanged to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.axes import alike_blocks, axes_of, moved, trace_block
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis, Producer
from featherweight.models.draw import draw_transform
from featherweight.models.experts import first_expert
from featherweight.models.folding import check_foldable, folded_tensors
from featherweight.models.probe import DoublePrecision, RandomBlock, sample_calls
from featherweight.models.rows import following_rows, moving_rows

if TYPE_CHECKING:
    from featherweight.models.replay import BlockCall
    from featherweight.models.structure import Structure

_TOLERANCE = 1e-9  # relative; a wrong guess is off by about 1
_SINGLE = (24, 1)  # single tokens: attention has one thing to attend to, so values pass through it unchanged
_SEVERAL = (2, 6)


@dataclass
class Probe:
    """One random block, its calls on single and on several tokens, and what it makes of them.

    Attributes:
        block: with random weights.
        single, several: call and hidden states.
        inputs: of the linears for single tokens, `[tokens, in]`.
        output: for several tokens.
    """

    block: RandomBlock
    single: tuple[BlockCall, Tensor]
    several: tuple[BlockCall, Tensor]
    inputs: dict[str, Tensor]
    output: Tensor
    generator: torch.Generator

    @classmethod
    def make(cls, model: nn.Module, structure: Structure, block: str) -> Probe:
        """A probe of one block; the generator is seeded."""
        generator = torch.Generator().manual_seed(0)
        random = RandomBlock.make(model, block, generator)
        pairs = []
        for shape in (_SINGLE, _SEVERAL):
            with DoublePrecision():
                hidden, calls = sample_calls(model, structure, shape, torch.float64, generator)
            pairs.append((calls[block], torch.randn(hidden.shape, dtype=torch.float64, generator=generator)))
        inputs, _ = random.run(*pairs[0])
        _, output = random.run(*pairs[1])
        return cls(random, pairs[0], pairs[1], inputs, output, generator)

    def holds(self, axis: Axis, kind: str) -> bool:
        """Whether folding a random map of this kind leaves the block's output unchanged."""
        try:
            transform = draw_transform(axis, kind, self.generator)
            check_foldable(replace(axis, admits=frozenset({kind})), transform)
        except FeatherweightError:
            return False
        changes = folded_tensors(self.block.model, axis, transform, self.block.values)
        _, output = self.block.run(*self.several, changes=changes)
        return bool((output - self.output).abs().max() <= _TOLERANCE * self.output.abs().max())


def find_producers(model: nn.Module, structure: Structure, block: str) -> tuple[Axis, ...]:
    """The axes of one block, in the order of execution, with their producers and what they admit; no weight is read.

    Costs a copy of the block in float64 and a few dozen runs on 24 tokens; see `find_all_producers` for many blocks.

    Raises:
        FeatherweightError: as `find_axes`.
    """
    hidden, calls = sample_calls(model, structure, (2, 3), torch.float32, torch.Generator().manual_seed(0))
    trace = trace_block(model, block, calls[block], hidden)
    axes = axes_of(trace, structure, block)
    keys = dict(trace.reads)
    probe = Probe.make(model, structure, block)
    found: list[Axis] = []
    for index, axis in enumerate(axes):
        norm = trace.writes.get(keys[axis.consumers[0]])
        earlier = [name for before in axes[:index] if before.expert == axis.expert for name in before.consumers]
        if axis.expert and axis.expert != first_expert(axis.expert):
            found.append(_like_the_first(axis, found))
        elif axis.others:
            found.append(axis)
        elif norm is not None:
            found.append(_with_norm(probe, axis, norm))
        else:
            found.append(_with_linears(probe, axis, earlier))
    return tuple(found)


def find_all_producers(model: nn.Module, structure: Structure) -> dict[str, tuple[Axis, ...]]:
    """The axes of every block as `find_producers` finds them; blocks of the same class and shapes are tried once.

    Raises:
        FeatherweightError: as `find_axes`.
    """
    firsts = alike_blocks(model, structure)
    known = {first: find_producers(model, structure, first) for first in dict.fromkeys(firsts.values())}
    return {block: tuple(moved(axis, first, block) for axis in known[first]) for block, first in firsts.items()}


def _with_norm(probe: Probe, axis: Axis, norm: str) -> Axis:
    for offset in (0.0, 1.0):
        producer = Producer(norm, "norm", frozenset({DIAGONAL}), offset=offset)
        candidate = replace(axis, producers=(producer,), admits=frozenset({DIAGONAL}))
        if probe.holds(candidate, DIAGONAL):
            return candidate
    return axis


def _with_linears(probe: Probe, axis: Axis, earlier: list[str]) -> Axis:
    """The axis with the linears that make it column by column, and the kinds of maps that proved exact."""
    linear, moving = _linear_producer(probe, axis, earlier)
    producers = [*([linear] if linear else []), *moving]
    shared = next((producer.rows for producer in producers if len(set(producer.rows or ())) < axis.size), None)
    whole = replace(axis, producers=tuple(producers), shared=shared)
    if not producers:
        return axis
    admits = {DIAGONAL} if linear and probe.holds(_all(whole, DIAGONAL, [linear]), DIAGONAL) else set()
    if probe.holds(_all(whole, PERMUTATION, producers), PERMUTATION):
        admits.add(PERMUTATION)
    elif linear and not moving:
        whole = replace(whole, groups=_mixing_groups(probe, axis, linear))
        admits |= {kind for kind in (PERMUTATION, ORTHOGONAL) if probe.holds(_all(whole, kind, producers), kind)}
    if ORTHOGONAL not in admits and whole.groups is None and probe.holds(_all(whole, ORTHOGONAL, producers), ORTHOGONAL):
        admits.add(ORTHOGONAL)
    kept = []
    for producer in producers:
        kinds = admits if producer is linear else admits - {DIAGONAL, ORTHOGONAL}
        if kinds:
            kept.append(replace(producer, admits=frozenset(kinds)))
    return replace(whole, producers=tuple(kept), admits=frozenset(admits)) if kept else axis


def _linear_producer(probe: Probe, axis: Axis, earlier: list[str]) -> tuple[Producer | None, list[Producer]]:
    """The linear whose rows scale the columns, and others that each column depends on through one row alone."""
    scale: Producer | None = None
    for name in reversed(earlier):
        rows = following_rows(_scaled_run(probe, axis, name), probe.inputs[axis.consumers[0]], _rows(probe, name))
        if rows is not None:
            scale = Producer(name, "linear", frozenset({DIAGONAL}), rows)
            break
    moving = []
    for name in reversed(earlier):
        still = scale.rows or () if scale is not None and scale.name == name else ()
        rows = moving_rows(_scaled_run(probe, axis, name), _rows(probe, name), still)
        if rows is not None:
            moving.append(Producer(name, "linear", frozenset({PERMUTATION}), rows))
    return scale, moving


def _scaled_run(probe: Probe, axis: Axis, name: str) -> Callable[[Tensor], Tensor]:
    """The axis's columns for single tokens, `[tokens, size]`, as a function of factors on the outputs of one linear."""

    def run(factors: Tensor) -> Tensor:
        return probe.block.run(*probe.single, outputs={name: lambda output: output * factors})[0][axis.consumers[0]]

    return run


def _rows(probe: Probe, name: str) -> int:
    module = probe.block.model.get_submodule(name)
    return int(getattr(module, "nf", 0) or module.weight.shape[0])


def _mixing_groups(probe: Probe, axis: Axis, producer: Producer) -> tuple[int, ...]:
    """Columns whose tokens are mixed alike (attention heads): all values of a token set equal, such columns agree.

    The last token tells, since it attends to several.
    """
    rows = torch.tensor(producer.rows)

    def level(output: Tensor) -> Tensor:
        changed = output.clone()
        steps = torch.randn(output.shape[:-1], dtype=output.dtype, generator=torch.Generator().manual_seed(1))
        changed[..., rows] = steps[..., None]
        return changed

    last = probe.block.run(*probe.several, outputs={producer.name: level})[0][axis.consumers[0]][-1]
    ordered, order = last.sort()
    steps = ordered.diff(prepend=ordered[:1]) > _TOLERANCE * last.abs().max()
    groups = torch.empty_like(order)
    groups[order] = steps.long().cumsum(0)
    return tuple(groups.tolist())


def _all(axis: Axis, kind: str, producers: list[Producer]) -> Axis:
    """The axis with these producers taking part in one kind of map."""
    return replace(axis, producers=tuple(replace(producer, admits=frozenset({kind})) for producer in producers))


def _like_the_first(axis: Axis, found: list[Axis]) -> Axis:
    """The axis of an expert as that of the first one was found to be."""
    first = first_expert(axis.expert)
    alike = (moved(each, first, axis.expert) for each in found if each.expert == first)
    return next(each for each in alike if each.name == axis.name)
