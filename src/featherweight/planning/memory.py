"""What a forward pass allocates, found by running it on shapes alone: activations, the key-value cache, temporaries."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featherweight.errors import FeatherweightError
from featherweight.models.structure import is_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    """Inside, counts the bytes of all tensors that operations made and that are still referred to.

    Attributes:
        now, peak: bytes at this moment, and the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Leave out the tensors that are there before."""
        super().__init__()
        self.now = self.peak = 0
        self._kept = list(known)
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count what it made; a view shares its storage and counts nothing."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:  # a sparse one shares its parts' storages
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _FusedAttention(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """Scaled dot-product attention as fused kernels do it: nothing but its output is made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Trace:
    """Bytes that reading `batch` sequences of `context` tokens and one decode step allocate, the weights not counted.

    Attributes:
        batch, context: of the pass.
        cache: keys and values after reading.
        prefill, decode: the most alive at once while reading, and in the step after it; the cache is among them.
        reading, stepping: by module path of each linear and embedding, what is alive when its output has just been made.
    """

    batch: int
    context: int
    cache: int
    prefill: int
    decode: int
    reading: dict[str, int]
    stepping: dict[str, int]


@dataclass
class Tracer:
    """Traces of one model at one batch size; each context once.

    Args:
        model: a skeleton; moved to the meta device altogether.
        batch: sequences at once.
    """

    model: PreTrainedModel
    batch: int
    known: dict[int, Trace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put buffers that hold values on the meta device too."""
        self.model = self.model.to("meta")

    def at(self, context: int) -> Trace:
        """The trace of reading so many tokens; only the last position's logits are made, as when generating.

        Raises:
            FeatherweightError: the model decides by values what it does (a mixture of experts), so shapes do not tell.
        """
        if context not in self.known:
            try:
                self.known[context] = _trace(self.model, self.batch, context)
            except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, IndexError) as problem:
                raise FeatherweightError(
                    f"the memory of a {self.model.config.model_type} model cannot be told from shapes",
                    found=str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__,
                    expected="a decoder whose work does not depend on values",
                    fix="measure it instead: `fw bench` prints the peak",
                ) from problem
        return self.known[context]


def _trace(model: PreTrainedModel, batch: int, context: int) -> Trace:
    ids = torch.zeros(batch, context, dtype=torch.long, device="meta")
    live = LiveBytes([ids, *model.parameters(), *model.buffers()])
    alive: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            alive[name] = max(alive.get(name, 0), live.now)

        return hook

    watched = [(name, part) for name, part in model.named_modules() if is_linear(part) or isinstance(part, nn.Embedding)]
    hooks = [part.register_forward_hook(note(name)) for name, part in watched]
    try:
        with torch.no_grad(), live, _FusedAttention():
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            cache, prefill, reading = live.now, live.peak, dict(alive)
            past = output.past_key_values
            cache -= output.logits.untyped_storage().nbytes()
            del output
            alive.clear()
            live.peak = live.now
            model(input_ids=ids[:, :1], past_key_values=past, use_cache=True)
            return Trace(batch, context, cache, prefill, live.peak, reading, dict(alive))
    finally:
        for hook in hooks:
            hook.remove()
