"""The modules that replace linears and embeddings: packed tensors as buffers, and a bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.kernels.registry import Prepared
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.lower import prepare

#: Names of buffers in a kernel's layout begin so.
_PREPARED = "prepared_"


@dataclass(frozen=True)
class WeightSketch:
    """What model code asks of `module.weight`, without the weight: shape, dtype and device."""

    _is_hf_initialized: ClassVar[bool] = True  # transformers then draws no random values for it
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    def size(self, dimension: int | None = None) -> torch.Size | int:
        """As `Tensor.size`."""
        return self.shape if dimension is None else self.shape[dimension]

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()


class PackedModule(nn.Module):  # type: ignore[misc]
    """Holds one packed weight: its stored tensors are buffers, whose dtypes no `.to`, `.half` or `.float` changes.

    Where a kernel has its own layout, buffers in that layout (`prepared_…`) stand in the stored tensors' place from the first
    product on; `packed`, `state_dict` and moves rebuild the stored tensors, bit for bit.

    Attributes:
        compute_dtype: dtype of the values it gives; follows `.to(dtype)`.
    """

    compute_dtype: torch.dtype

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self._description = weight.description()
        self._stored = tuple(weight.tensors())
        for name, tensor in weight.tensors().items():
            self.register_buffer(name, tensor)
        self.compute_dtype = dtype
        self._dense: Tensor | None = None
        self._prepared: Prepared | None = None
        self._unprepared: tuple[torch.device, torch.dtype] | None = None  # for which no kernel has a layout of its own

    @property
    def packed(self) -> PackedWeight:
        """The packed weight; shares the buffers, or is rebuilt from a kernel's layout."""
        return from_tensors(self._description, self._tensors())

    @property
    def weight(self) -> Any:
        """A stand-in with the weight's shape, compute dtype and device; ask `packed` for values."""
        device = next(buffer.device for buffer in self._buffers.values() if buffer is not None)
        return WeightSketch(torch.Size(self._description["shape"]), self.compute_dtype, device)

    def cache_dense(self, dtype: torch.dtype | None = None) -> None:
        """Keep the values, dense and in `dtype`, until `release_dense`: faster repeated forwards, more memory.

        A weight that rounds its input keeps nothing: a product by another path could round otherwise.
        """
        packed = self.packed
        self._dense = packed.dequantize(self.compute_dtype if dtype is None else dtype) if packed.is_linear else None

    def release_dense(self) -> None:
        """Drop what `cache_dense` kept."""
        self._dense = None

    def dense(self, dtype: torch.dtype) -> Tensor | None:
        """The kept values if they are in `dtype`."""
        return self._dense if self._dense is not None and self._dense.dtype == dtype else None

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x · Wᵀ + bias`: from the kept values where there are any, by a kernel where one runs, else by composition."""
        kind = x.device.type
        dense = self.dense(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)
        if dense is None:
            prepared = self._prepare(x)
            if prepared is not None:
                return prepared(x, bias)
        y = self.packed.matmul(x) if dense is None else nn.functional.linear(x, dense)
        return y if bias is None else y + bias.to(y.dtype)

    def release_prepared(self) -> None:
        """Put the stored tensors back in the place of a kernel's layout."""
        if self._prepared is not None:
            stored = self._tensors()
            for name in self._prepared.tensors():
                del self._buffers[f"{_PREPARED}{name}"]
            self._prepared = None
            self._buffers.update(stored)
        self._unprepared = None

    def prepared_for(self, x: Tensor) -> Prepared | None:
        """The weight in a kernel's layout, made now if one runs for `x`."""
        return self._prepare(x)

    def hold(self, prepared: Prepared) -> None:
        """Hold the same weight in other tensors of a kernel's layout, such as a part of those of several weights."""
        self._take_over(prepared)

    def _prepare(self, x: Tensor) -> Prepared | None:
        """The weight in a kernel's layout if one runs for `x`; else the stored tensors are in place afterwards."""
        if self._prepared is None and (x.device, x.dtype) != self._unprepared:
            prepared = prepare(self.packed, x.dtype)
            if prepared is None:
                self._unprepared = (x.device, x.dtype)
            else:
                self._take_over(prepared)
        if self._prepared is not None and not self._prepared.runs(x):
            self.release_prepared()
        return self._prepared

    def _take_over(self, prepared: Prepared) -> None:
        """Hold a kernel's layout instead of the stored tensors."""
        self._prepared = prepared
        self._buffers.update(dict.fromkeys(self._stored))
        for name, tensor in prepared.tensors().items():
            self.register_buffer(f"{_PREPARED}{name}", tensor, persistent=False)

    def _tensors(self) -> dict[str, Tensor]:
        if self._prepared is not None:
            return self._prepared.stored()
        return {name: self._buffers[name] for name in self._stored}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._prepared is not None:
            destination.update({prefix + name: tensor for name, tensor in self._tensors().items()})

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.release_prepared()
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedModule:
        """Device moves reach the packed tensors, dtype changes only the bias and `compute_dtype`."""
        self.release_dense()
        self.release_prepared()
        packed = {name: self._buffers.pop(name) for name in self._stored}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(packed)
        for name, tensor in packed.items():
            assert tensor is not None
            moved = fn(tensor)
            self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self


class PackedLinear(PackedModule):
    """A linear layer `y = x Wᵀ + b` that runs from its packed weight.

    Args:
        weight: the packed weight, `[out, in]`.
        bias: `[out]` or None; becomes a parameter that is not trained.
        dtype: what `.weight.dtype` tells model code; the bias's dtype or float32 if not given.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(weight, dtype or (torch.float32 if bias is None else bias.dtype))
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` to `[..., out]`, in the dtype of `x`."""
        return self.multiply(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes and storage."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._description['kind']}"


class PackedEmbedding(PackedModule):
    """An embedding that decodes only the rows it looks up.

    Args:
        weight: packed table, `[vocabulary, features]`.
        dtype: of the looked-up vectors.
        padding_idx: kept for model code that reads it; it changes gradients only, of which there are none.
        embed_scale: factor on the looked-up vectors (Gemma's scaled embedding).
    """

    def __init__(
        self,
        weight: PackedWeight,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
        embed_scale: float | Tensor | None = None,
    ) -> None:
        super().__init__(weight, dtype)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx
        self.embed_scale = float(embed_scale) if embed_scale is not None else None

    @classmethod
    def like(cls, embedding: nn.Embedding, weight: PackedWeight) -> PackedEmbedding:
        """The packed form of `embedding`, with its dtype, padding index and scale.

        Raises:
            FeatherweightError: an embedding that renormalises its rows (`max_norm`).
        """
        if embedding.max_norm is not None:
            raise FeatherweightError(
                "this embedding renormalises its rows at look-up", found=f"max_norm={embedding.max_norm}", expected="none"
            )
        scale = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", None))
        return cls(weight, embedding.weight.dtype, embedding.padding_idx, scale)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [...]` to `[..., features]` in the compute dtype."""
        dense = self.dense(self.compute_dtype)
        values = self.packed.rows(ids, self.compute_dtype) if dense is None else nn.functional.embedding(ids, dense)
        if self.embed_scale is None:
            return values
        return values * torch.full((), self.embed_scale, dtype=values.dtype, device=values.device)

    def _take_over(self, prepared: Prepared) -> None:
        """Hold a kernel's layout beside the stored tensors, from which rows are looked up."""
        for name, tensor in prepared.tensors().items():
            self.register_buffer(f"{_PREPARED}{name}", tensor, persistent=False)
        self._prepared = prepared

    def _tensors(self) -> dict[str, Tensor]:
        return {name: self._buffers[name] for name in self._stored}

    def extra_repr(self) -> str:
        """Sizes and storage."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._description['kind']}"


class TiedPackedLinear(nn.Module):  # type: ignore[misc]
    """An output head that multiplies by an embedding's packed weight; it stores nothing of it.

    Args:
        embedding: whose weight it uses; referred to, not owned, so that files hold it once.
        bias: `[vocabulary]` or None.
    """

    def __init__(self, embedding: PackedEmbedding, bias: Tensor | None = None) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that it does not register as a child
        self.out_features, self.in_features = embedding.num_embeddings, embedding.embedding_dim
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def packed(self) -> PackedWeight:
        """The embedding's packed weight."""
        return self._embedding[0].packed

    @property
    def weight(self) -> Any:
        """As `PackedModule.weight`."""
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., features]` to logits `[..., vocabulary]`, in the dtype of `x`."""
        return self._embedding[0].multiply(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes, and that the weight is shared."""
        return f"{self.in_features}, {self.out_features}, tied to the embedding"


@contextmanager
def dense_cache(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Keep the dense values of every packed module below `module` for the duration of the `with` block."""
    packed = [child for child in module.modules() if isinstance(child, PackedModule)]
    try:
        for child in packed:
            child.cache_dense(dtype)
        yield
    finally:
        for child in packed:
            child.release_dense()
