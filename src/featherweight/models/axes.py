"""The axes of every block, from one call of each on the meta device: no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.axis import Axis, Producer
from featherweight.models.experts import Expert, Experts
from featherweight.models.probe import meta_call, sample_calls
from featherweight.models.structure import is_linear

if TYPE_CHECKING:
    from featherweight.models.replay import BlockCall
    from featherweight.models.structure import Structure

__all__ = ["Axis", "Producer", "Trace", "alike_blocks", "find_axes", "find_producers", "moved", "trace_block"]

_SHAPE = (2, 3)  # samples and tokens of the traced call; more than one of each, so that no reshape is a no-op by accident

#: A tensor's identity: views of all its elements count as the tensor itself, slices of it do not.
Key = tuple[int, int, int, int]


@dataclass
class Trace:
    """Who read which tensor, and which one-dimensional weights wrote it, in one call of a block.

    Attributes:
        reads: (module path, tensor), in the order of execution, of every module with tensors of its own.
        writes: the paths of modules that scale by a vector (norms), by the tensor that they return.
        experts: module path of the expert that each linear within one belongs to.
    """

    reads: list[tuple[str, Key]] = field(default_factory=list)
    writes: dict[Key, str] = field(default_factory=dict)
    experts: dict[str, str] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def key(self, tensor: Tensor) -> Key:
        """The tensor's identity; keeps it alive, so that no other tensor can take its place in memory."""
        self._alive.append(tensor)
        return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel(), tensor._version)


def find_axes(model: nn.Module, structure: Structure) -> dict[str, tuple[Axis, ...]]:
    """By block, the axes that its linears read, in the order of execution; producers are left empty.

    Blocks of the same class and shapes are traced once.

    Args:
        model: a skeleton will do.
        structure: of this model.

    Raises:
        FeatherweightError: a block cannot be called without data; or one of its linears runs never, or more than once.
    """
    hidden, calls = sample_calls(model, structure, _SHAPE, torch.float32, torch.Generator().manual_seed(0))
    firsts = alike_blocks(model, structure)
    known = {
        block: axes_of(trace_block(model, block, calls[block], hidden), structure, block)
        for block in dict.fromkeys(firsts.values())
    }
    return {block: tuple(moved(axis, first, block) for axis in known[first]) for block, first in firsts.items()}


def find_producers(model: nn.Module, structure: Structure, block: str) -> tuple[Axis, ...]:
    """The block's axes with their producers and what they admit; see `featherweight.models.producers`."""
    from featherweight.models.producers import find_producers as find

    return find(model, structure, block)


def trace_block(model: nn.Module, block: str, call: BlockCall, hidden: Tensor) -> Trace:
    """Call one block on the meta device and note who reads what.

    Raises:
        FeatherweightError: the block cannot be called without data.
    """
    trace = Trace()
    module = model.get_submodule(block)
    handles = []
    for path, part in module.named_modules():
        if isinstance(part, Expert):
            trace.experts |= {f"{block}.{path}.{name}": f"{block}.{path}" for name, _ in part.named_children()}
        if path and (isinstance(part, Experts) or next(part.parameters(recurse=False), None) is not None):
            handles.append(part.register_forward_pre_hook(_note_reads(trace, f"{block}.{path}"), with_kwargs=True))
            if not is_linear(part) and getattr(getattr(part, "weight", None), "ndim", 0) == 1:
                handles.append(part.register_forward_hook(_note_write(trace, f"{block}.{path}")))
    try:
        meta_call(module, call, hidden)
    except (RuntimeError, NotImplementedError) as error:
        raise FeatherweightError(
            f"the block {block} ({type(module).__name__}) cannot be traced without data",
            found=str(error).splitlines()[0][:200],
            expected="a block whose path does not depend on values",
            fix="this family is not supported yet",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return trace


def axes_of(trace: Trace, structure: Structure, block: str) -> tuple[Axis, ...]:
    """The axes in a trace, in the order of execution.

    Raises:
        FeatherweightError: one of the block's linears runs never, or more than once.
    """
    sizes = {linear.name: linear.shape[1] for linear in structure.linears[block]}
    readers: dict[Key, list[str]] = {}
    for path, key in trace.reads:
        readers.setdefault(key, []).append(path)
    runs = [path for path, _ in trace.reads if path in sizes]
    times = Counter(runs)
    odd = [name for name in sizes if times[name] != 1]
    if odd:
        raise FeatherweightError(
            f"{len(odd)} linears of {block} do not run exactly once when the block runs",
            found=", ".join(f"{name}: {times[name]} times" for name in odd[:6]),
            expected="each linear of a block runs once",
            fix="this family is not supported yet",
        )
    axes = []
    for paths in readers.values():
        consumers = tuple(path for path in paths if path in sizes)
        if consumers:
            others = tuple(dict.fromkeys(path for path in paths if path not in sizes and not _holds_any(path, consumers)))
            expert = trace.experts.get(consumers[0], "")
            axes.append(Axis(f"{consumers[0]}.input", block, sizes[consumers[0]], consumers, others, expert=expert))
    order = {name: index for index, name in enumerate(runs)}
    return tuple(sorted(axes, key=lambda axis: order[axis.consumers[0]]))


def alike_blocks(model: nn.Module, structure: Structure) -> dict[str, str]:
    """For every block the first one of the same class and shapes."""
    known: dict[tuple[object, ...], str] = {}
    firsts = {}
    for block in structure.blocks:
        module = model.get_submodule(block)
        parts = tuple((path, type(part).__name__) for path, part in module.named_modules())
        signature = (parts, tuple((name, tuple(tensor.shape)) for name, tensor in module.named_parameters()))
        firsts[block] = known.setdefault(signature, block)
    return firsts


def moved(axis: Axis, first: str, second: str) -> Axis:
    """The same axis in another block, or in another expert."""

    def move(name: str) -> str:
        return second + name.removeprefix(first) if name == first or name.startswith(f"{first}.") else name

    return replace(
        axis,
        name=move(axis.name),
        block=move(axis.block),
        expert=move(axis.expert),
        consumers=tuple(map(move, axis.consumers)),
        others=tuple(map(move, axis.others)),
        producers=tuple(replace(producer, name=move(producer.name)) for producer in axis.producers),
    )


def _holds_any(path: str, names: tuple[str, ...]) -> bool:
    """Whether the module at `path` reads an axis only to hand it on to linears inside it (attention with sinks)."""
    return any(name.startswith(f"{path}.") for name in names)


def _note_reads(trace: Trace, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        floating = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()]
        trace.reads.extend((path, trace.key(value)) for value in floating)

    return hook


def _note_write(trace: Trace, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            trace.writes[trace.key(output)] = path

    return hook
