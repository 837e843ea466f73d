"""How vLLM's layers are made of packed weights. Importing this module imports vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from featherweight.errors import FeatherweightError
from featherweight.integrations.config import METHOD, check_version
from featherweight.integrations.vllm_shards import Shard
from featherweight.packed.base import from_tensors, layout_of
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedEmbedding

#: This process's layers by name, for operations that the compiler cannot look into: logits are computed outside of vLLM's own context.
_LAYERS: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()

#: Ids under which vLLM hands over the parts of a fused layer, by their place in it.
_PLACES = {"q": 0, "k": 1, "v": 2}


class PackedConfig(QuantizationConfig):  # type: ignore[misc]
    """Our section of config.json as vLLM holds it."""

    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.modules = modules

    def get_name(self) -> str:
        """Our `quant_method`."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Any floating dtype runs."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any: kernels that a device cannot run are passed over."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None but config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PackedConfig:
        """From `quantization_config`.

        Raises:
            FeatherweightError: a checkpoint of a newer format, or one with experts.
        """
        check_version(int(config.get("format_version", 1)))
        if config.get("experts"):
            raise FeatherweightError(
                "vLLM cannot run this output", found="experts that are stored as linears of their own",
                expected="a model without experts", fix="load it with transformers, or serve what `fw export --format dense` writes",
            )  # fmt: skip
        return cls(config.get("modules") or {})

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Ours for layers with a packed part, vLLM's own for the others."""
        parts = self.parts_of(prefix)
        if isinstance(layer, LinearBase):
            return PackedLayer(self, prefix, parts) if self.modules.keys() & set(parts) else UnquantizedLinearMethod()
        if isinstance(layer, VocabParallelEmbedding):
            tied = isinstance(layer, ParallelLMHead) and get_current_vllm_config().model_config.hf_config.tie_word_embeddings
            packed = prefix in self.modules or (tied and any("embed" in name for name in self.modules))
            return PackedVocabulary(self, prefix) if packed else None
        return None

    def parts_of(self, prefix: str) -> list[str]:
        """Modules of the checkpoint that a layer is made of: several where vLLM fuses them."""
        stem, _, name = prefix.rpartition(".")
        return [f"{stem}.{part}" for part in self.packed_modules_mapping.get(name, [name])]


def _receive(layer: nn.Module, parts: list[str], modules: Mapping[str, Mapping[str, Any]], dtype: torch.dtype) -> None:
    """Give `layer` a parameter for every stored tensor's name; what is loaded into it is kept by part in `layer.received`."""
    layer.received = {part: {} for part in parts}
    for part in parts:
        described = layout_of(modules[part]) if part in modules else {"weight": ((0,), dtype)}
        for name, (_, kind) in described.items():
            if name not in layer._parameters:
                holder = nn.Parameter(torch.empty(0, dtype=kind), requires_grad=False)
                holder.weight_loader = _loader(layer, parts, name)
                layer.register_parameter(name, holder)


def _loader(layer: nn.Module, parts: list[str], name: str) -> Any:
    def load(holder: nn.Parameter, loaded: Tensor, shard: str | int | None = None) -> None:
        shard = getattr(loaded, "shard_id", None) if shard is None else shard
        place = _PLACES[shard] if isinstance(shard, str) else int(shard or 0)
        layer.received[parts[place]][name] = loaded.detach().to(holder.device, copy=True)  # files are read on the CPU

    return load


def _take(layer: nn.Module, part: str, modules: Mapping[str, Mapping[str, Any]]) -> Any:
    """The packed weight of one part, once all its tensors are there."""
    tensors = layer.received[part]
    expected = layout_of(modules[part]) if part in modules else {"weight": None}
    missing = expected.keys() - tensors.keys()
    if missing:
        raise FeatherweightError(f"tensors of {part} are missing", found=sorted(tensors), expected=sorted(expected))
    return from_tensors(modules[part], tensors) if part in modules else Dense(tensors["weight"])


def _forget(layer: nn.Module) -> None:
    del layer.received
    for name, parameter in list(layer._parameters.items()):
        if parameter is not None and parameter.numel() == 0:
            del layer._parameters[name]


class PackedLayer(LinearMethodBase):  # type: ignore[misc]
    """A linear of vLLM, of one or several packed weights."""

    def __init__(self, config: PackedConfig, prefix: str, parts: list[str]) -> None:
        self._config, self._prefix, self._parts = config, prefix, parts

    def create_weights(
        self, layer: nn.Module, input_size_per_partition: int, output_partition_sizes: list[int], input_size: int,
        output_size: int, params_dtype: torch.dtype, **extra: Any,
    ) -> None:  # fmt: skip
        """Holders for what will be loaded."""
        self._inputs, self._outputs, self._dtype = input_size_per_partition, output_partition_sizes, params_dtype
        _receive(layer, self._parts, self._config.modules, params_dtype)
        _LAYERS[self._prefix] = layer

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Keep this rank's part of every weight."""
        shards = []
        for part, rows in zip(self._parts, self._outputs, strict=True):
            weight = _take(layer, part, self._config.modules)
            ranks = getattr(layer, "tp_size", 1)
            copies = max(1, ranks * rows // weight.shape[0])  # heads of keys and values that several ranks share
            first = getattr(layer, "tp_rank", 0) // copies * rows if rows < weight.shape[0] else 0
            left = getattr(layer, "tp_rank", 0) * self._inputs if self._inputs < weight.shape[1] else 0
            device = next(iter(weight.tensors().values())).device
            shards.append(Shard(weight, slice(first, first + rows), slice(left, left + self._inputs), self._dtype).to(device))
        _forget(layer)
        layer.packed = nn.ModuleList(shards)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `[..., out]`, all parts one after the other."""
        y = torch.ops.featherweight.vllm_multiply(x, self._prefix, sum(self._outputs))
        return y if bias is None else y + bias


class PackedVocabulary(QuantizeMethodBase):  # type: ignore[misc]
    """An embedding, an output head, or a head that shares an embedding's weight."""

    def __init__(self, config: PackedConfig, prefix: str) -> None:
        self._config, self._prefix = config, prefix

    def create_weights(self, layer: nn.Module, *sizes: Any, params_dtype: torch.dtype, **extra: Any) -> None:
        """Holders for what will be loaded; none for a head that will share."""
        self._dtype = params_dtype
        _LAYERS[self._prefix] = layer
        if self._prefix in self._config.modules:
            _receive(layer, [self._prefix], self._config.modules, params_dtype)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Keep this rank's rows."""
        if "received" not in layer.__dict__:
            return
        weight, rows = _take(layer, self._prefix, self._config.modules), layer.shard_indices
        device = next(iter(weight.tensors().values())).device
        part = weight.take(outputs=slice(rows.org_vocab_start_index, rows.org_vocab_end_index))
        _forget(layer)
        layer.packed = PackedEmbedding(part, self._dtype).to(device)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Use the embedding's weight."""
        layer.shares = (embed_tokens,)  # in a tuple, so that it does not register as a child
        return layer

    def embedding(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """Rows of the table, decoded as they are looked up."""
        return torch.ops.featherweight.vllm_look_up(ids, self._prefix, layer.embedding_dim, self._dtype)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Logits of this rank's rows; padded rows give zeros."""
        y = torch.ops.featherweight.vllm_multiply(x, self._prefix, layer.num_embeddings_per_partition)
        return y if bias is None else y + bias


@torch.library.custom_op("featherweight::vllm_multiply", mutates_args=())
def _multiply(x: Tensor, prefix: str, outputs: int) -> Tensor:
    """The product of a layer that is known by its name: to the compiler one operation."""
    layer = _LAYERS[prefix]
    held = layer.shares[0].packed if hasattr(layer, "shares") else layer.packed
    if isinstance(held, nn.ModuleList):
        return torch.cat([part(x) for part in held], -1) if len(held) > 1 else held[0](x).clone()
    y = held.multiply(x)
    return nn.functional.pad(y, (0, outputs - y.shape[-1]))


@_multiply.register_fake
def _multiply_fake(x: Tensor, prefix: str, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@torch.library.custom_op("featherweight::vllm_look_up", mutates_args=())
def _look_up(ids: Tensor, prefix: str, features: int, dtype: torch.dtype) -> Tensor:
    return _LAYERS[prefix].packed(ids).to(dtype)


@_look_up.register_fake
def _look_up_fake(ids: Tensor, prefix: str, features: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*ids.shape, features, dtype=dtype, device=ids.device)


def register_config() -> None:
    """Enter `PackedConfig` under our `quant_method`."""
    register_quantization_config(METHOD)(PackedConfig)
