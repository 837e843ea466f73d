"""Running the decoder blocks one at a time, each with the arguments that the whole model would give it.

Every block gets arguments of its own (sliding windows and rotary tables differ by layer), so one pass of the whole model
with all blocks bypassed writes them down: nothing is assumed about any family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.spill import SpilledStates

if TYPE_CHECKING:
    from featherweight.models.structure import Structure


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block for one batch, verbatim, with a hole where the hidden states go.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        slot: where the hidden states go: a position in `args`, or a key of `kwargs`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: int | str

    def run(self, block: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The block's hidden states `[batch, length, hidden]` for these; the rest of its outputs is dropped."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.slot, int):
            args[self.slot] = hidden
        else:
            kwargs[self.slot] = hidden
        return first_output(block(*args, **kwargs))

    def map(self, change: Callable[[Tensor], Tensor]) -> BlockCall:
        """The same call with every tensor in it changed."""
        return BlockCall(_map(self.args, change), _map(self.kwargs, change), self.slot)


@dataclass
class BlockInputs:
    """What goes into the current block: hidden states that move on, and every block's own arguments.

    Attributes:
        hidden: per batch, the current hidden states `[samples, length, hidden]`; in memory or on disk.
        calls: by block, one call per batch; equal tensors are stored once.
    """

    hidden: list[Tensor] | SpilledStates
    calls: dict[str, list[BlockCall]]

    def run(self, model: nn.Module, block: str, batch: int, hidden: Tensor | None = None) -> Tensor:
        """Hidden states `[samples, length, hidden]` that `block` makes of one batch; gradients are the caller's choice.

        Args:
            model: holds the block, with weights.
            block: module path.
            batch: index of the batch.
            hidden: to use instead of the current hidden states of that batch.
        """
        states = self.hidden[batch] if hidden is None else hidden
        return self.calls[block][batch].run(model.get_submodule(block), states)

    def advance(self, outputs: Iterable[Tensor]) -> None:
        """Make the outputs of this block, one per batch, the inputs of the next; each takes its place as it comes.

        Raises:
            FeatherweightError: another number of batches, or a batch of another shape.
        """
        shapes = self.hidden.shapes if isinstance(self.hidden, SpilledStates) else [tuple(each.shape) for each in self.hidden]
        came = 0
        for index, states in enumerate(outputs):
            if index >= len(shapes) or tuple(states.shape) != shapes[index]:
                raise _unfit(f"batch {index} of shape {list(states.shape)}", shapes)
            self.hidden[index] = states
            came += 1
        if came != len(shapes):
            raise _unfit(f"{came} batches", shapes)

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See the function `finish`."""
        return finish(model, hidden, tuple(self.calls))


def _unfit(found: str, shapes: list[tuple[int, ...]]) -> FeatherweightError:
    return FeatherweightError("a block's outputs do not fit the next one's inputs", found=found, expected=shapes)


def capture(model: nn.Module, structure: Structure, tokens: Tensor, batch_size: int, spill: Path | None = None) -> BlockInputs:
    """The inputs of the first block, and the arguments of every block, for all tokens.

    The model runs up to its last block with all blocks bypassed, so these may be on the meta device; everything before
    them must be there.

    Args:
        model: in eval mode.
        structure: of this model.
        tokens: token ids `[samples, length]`, on the model's device.
        batch_size: samples in a batch; the last batch may be smaller.
        spill: folder of a file that holds the hidden states; None keeps them in memory.

    Raises:
        FeatherweightError: no tokens; or the model does not run its blocks once each, in order.
    """
    if tokens.ndim != 2 or not tokens.numel() or batch_size < 1:
        raise FeatherweightError(
            "there is nothing to run the blocks on",
            found=f"tokens of shape {list(tokens.shape)}, batch size {batch_size}",
            expected="token ids [samples, length] and a batch size of at least 1",
        )
    pool = _Pool()
    inputs = BlockInputs([] if spill is None else SpilledStates(spill), {block: [] for block in structure.blocks})
    for batch in tokens.split(batch_size):
        with torch.no_grad():
            hidden, calls = record_calls(model, structure.blocks, partial(model, input_ids=batch, use_cache=False))
        inputs.hidden.append(hidden)
        for block, call in calls.items():
            inputs.calls[block].append(call.map(pool.keep))
        pool.end_batch()
    return inputs


def record_calls(model: nn.Module, blocks: Sequence[str], forward: Callable[[], Any]) -> tuple[Tensor, dict[str, BlockCall]]:
    """The first block's hidden states and every block's call during `forward`, which ends at the last block.

    Raises:
        FeatherweightError: the blocks did not run once each, in order.
    """
    calls: dict[str, BlockCall] = {}
    first: list[Tensor] = []

    def recorder(block: str) -> Callable[..., Tensor]:
        def record(*args: Any, **kwargs: Any) -> Tensor:
            slot: int | str = 0 if args else "hidden_states"
            hidden = args[0] if args else kwargs["hidden_states"]
            held = (None, *args[1:]) if args else ()
            calls[block] = BlockCall(held, {key: value for key, value in kwargs.items() if key != slot}, slot)
            first.append(hidden)
            if block == blocks[-1]:
                raise _LastBlockReached
            return PassedOn.wrap(hidden)

        return record

    with override_forwards(model, {block: recorder(block) for block in blocks}), suppress(_LastBlockReached):
        forward()
    if list(calls) != list(blocks) or len(first) != len(blocks):
        raise FeatherweightError(
            f"{type(model).__name__} does not run its blocks once each, in order",
            found=", ".join(calls) or "no block was called",
            expected=", ".join(blocks),
            fix="choose a plain decoder",
        )
    return first[0].as_subclass(Tensor), calls


def finish(model: nn.Module, hidden: Tensor, blocks: Sequence[str]) -> Tensor:
    """Logits `[samples, length, vocabulary]` that the model makes of the last block's hidden states.

    The model runs with all blocks bypassed, so these may be on the meta device; the embedding, the final norm and the head
    must be there.

    Args:
        model: in eval mode.
        hidden: output of the last block, `[samples, length, hidden]`.
        blocks: module paths of the model's blocks.
    """

    def bypass(*args: Any, **kwargs: Any) -> Tensor:
        return PassedOn.wrap(hidden)

    tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    with torch.no_grad(), override_forwards(model, dict.fromkeys(blocks, bypass)):
        return model(input_ids=tokens, use_cache=False).logits


def head_inputs(model: nn.Module, inputs: BlockInputs, head: str, spill: Path | None = None) -> BlockInputs:
    """The head as one more block: what `model` hands it for the last block's outputs, batch by batch.

    Args:
        model: in eval mode; everything outside the blocks must be there, the head's weight excepted.
        inputs: advanced beyond the last block.
        head: module path of the output head.
        spill: as in `capture`.
    """
    found: list[Tensor] | SpilledStates = [] if spill is None else SpilledStates(spill)

    def record(hidden: Tensor) -> Tensor:
        found.append(hidden.as_subclass(Tensor))
        return hidden

    with override_forwards(model, {head: record}):
        for hidden in inputs.hidden:
            inputs.finish(model, hidden)
    return BlockInputs(found, {head: [BlockCall((None,), {}, 0)] * len(found)})


@contextmanager
def override_forwards(model: nn.Module, forwards: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of modules, by path, and put the own ones back at the end."""
    modules = {path: model.get_submodule(path) for path in forwards}
    before = {path: module.__dict__.get("forward") for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.__dict__["forward"] = forwards[path]
        yield
    finally:
        for path, module in modules.items():
            module.__dict__.pop("forward", None)
            if before[path] is not None:
                module.__dict__["forward"] = before[path]


def first_output(output: Any) -> Tensor:
    """The hidden states of what a block returns: a tensor, or a tuple that begins with one."""
    return output[0] if isinstance(output, tuple | list) else output


class PassedOn(Tensor):  # type: ignore[misc]  # torch is untyped here
    """Hidden states that can be taken for a block's tensor and for its tuple: `states[0]` is the states themselves.

    Some families return `hidden`, others `(hidden, ...)`; a bypassed block cannot know which its caller expects.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def wrap(cls, tensor: Tensor) -> Tensor:
        """`tensor` itself, seen through this class; no copy."""
        return tensor.as_subclass(Tensor).as_subclass(cls)

    def __getitem__(self, index: Any) -> Any:
        """The states for index 0, else what a plain tensor gives."""
        plain = self.as_subclass(Tensor)
        return plain if isinstance(index, int) and index == 0 else plain[index]


class _LastBlockReached(Exception):
    """Ends a forward whose remainder is not needed."""


class _Pool:
    """Keeps one tensor of those that are equal."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: dict[tuple[Any, ...], list[Tensor]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """The kept tensor that equals this one, or this one."""
        if id(tensor) not in self._seen:
            alike = self._kept.setdefault((tensor.shape, tensor.dtype, tensor.device), [])
            kept = next((other for other in alike if torch.equal(other, tensor)), None)
            if kept is None:
                kept = tensor
                alike.append(tensor)
            self._seen[id(tensor)] = (tensor, kept)
        return self._seen[id(tensor)][1]

    def end_batch(self) -> None:
        """Forget who was seen, so that equal tensors of this batch can be freed."""
        self._seen.clear()


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor inside tuples, lists and dicts changed; the rest as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_map(part, change) for part in value)
    if type(value) is dict:
        return {key: _map(part, change) for key, part in value.items()}
    return value
