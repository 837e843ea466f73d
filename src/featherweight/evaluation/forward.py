"""Running a causal model over windows: device, dtype, finite logits, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError

CausalModel = Callable[..., Any]
"""`model(input_ids=tokens [batch, T]).logits` is `[batch, T, vocabulary]`."""

Progress = Callable[[int, int], None]
"""`progress(windows done, windows in all)`."""

SAMPLED = 4096  # elements of each tensor that enter the fingerprint


def device_of(model: CausalModel) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model without any."""
    for tensor in _tensors(model):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: CausalModel) -> str:
    """The dtype of the model's activations: its first floating parameter's, "float32" for a model without any."""
    for tensor in _tensors(model):
        if tensor.is_floating_point():
            return str(tensor.dtype).removeprefix("torch.")
    return "float32"


def _tensors(model: CausalModel) -> Iterator[Tensor]:
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def context_of(model: object) -> int | None:
    """Positions the model was made for, None where its configuration does not say."""
    return _configured(model, "max_position_embeddings")


def vocabulary_of(model: object) -> int | None:
    """Size of the model's vocabulary, None where its configuration does not say."""
    return _configured(model, "vocab_size")


def _configured(model: object, name: str) -> int | None:
    configuration: Any = getattr(model, "config", None)
    inner = configuration.get_text_config() if hasattr(configuration, "get_text_config") else configuration
    value = getattr(inner, name, None)
    return value if isinstance(value, int) and value > 0 else None


@contextmanager
def measuring(*models: object) -> Iterator[None]:
    """Evaluation mode (no dropout) and no gradients inside; modes as before afterwards."""
    training = [model for model in models if isinstance(model, nn.Module) and model.training]
    try:
        for model in training:
            model.eval()
        with torch.no_grad():  # not inference mode: what a model caches meanwhile must stay trainable
            yield
    finally:
        for model in training:
            model.train()


def window_logits(model: CausalModel, tokens: Tensor, window: int, who: str = "the model") -> Tensor:
    """Logits of one window, without a key-value cache.

    Args:
        model: any callable `model(input_ids=[1, T]).logits`; one with a `config` is told `use_cache=False`.
        tokens: `[T]` int64.
        window: its number, for the error.
        who: what the error calls the model.

    Returns:
        `[T, vocabulary]`, in the model's dtype and on its device.

    Raises:
        FeatherweightError: NaN or Inf among the logits, or a token id beyond the vocabulary.
    """
    _check_vocabulary(tokens, vocabulary_of(model), window)
    ids = tokens.unsqueeze(0).to(device_of(model))
    output = model(input_ids=ids, use_cache=False) if hasattr(model, "config") else model(input_ids=ids)
    logits: Tensor = output.logits[0]
    _check_vocabulary(tokens, logits.shape[-1], window)
    finite = torch.isfinite(logits)
    if not bool(finite.all()):
        bad = int((~finite).any(-1).nonzero()[0])
        raise FeatherweightError(
            f"the logits of {who} are not finite in window {window}",
            found=f"NaN or Inf at {int((~finite).any(-1).sum())} of {logits.shape[0]} positions, the first at {bad}",
            expected="finite logits",
            fix="run in float32 or bfloat16; check the compressed weights of the blocks (fw verify)",
        )
    return logits


def _check_vocabulary(tokens: Tensor, vocabulary: int | None, window: int) -> None:
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise FeatherweightError(
            "the tokens are not this model's",
            found=f"token id {int(tokens.max())} in window {window}",
            expected=f"ids below {vocabulary}, the model's vocabulary",
            fix="use the tokenizer that belongs to the model",
        )


def fingerprint(model: CausalModel) -> str:
    """sha256 over names, shapes and evenly spaced values (at most 4096 of each tensor, in float64) of the state.

    Cheap enough for any model, and equal across devices and runs; a change that touches none of the sampled values goes
    unseen. A callable without a state is known by its type's name.
    """
    digest = hashlib.sha256()
    if not isinstance(model, nn.Module):
        return hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}".encode()).hexdigest()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        flat = tensor.detach().reshape(-1)
        stride = max(1, -(-flat.numel() // SAMPLED))
        values = flat[::stride].to("cpu", torch.float64).numpy().astype("<f8")
        digest.update(f"{name} {list(tensor.shape)} ".encode() + values.tobytes())
    return digest.hexdigest()
