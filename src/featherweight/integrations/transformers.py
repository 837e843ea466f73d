"""Our checkpoints in transformers: packed modules are put in place before the weights are read.

Importing this module imports transformers; `featherweight.integrations.hook` imports it once transformers is there.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from featherweight.integrations.config import FORMAT_VERSION, METHOD, check_version
from featherweight.packed.base import empty
from featherweight.packed.linear import PackedEmbedding, PackedLinear, TiedPackedLinear


@register_quantization_config(METHOD)
class FeatherweightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` as transformers holds it."""

    def __init__(
        self,
        modules: dict[str, dict[str, Any]] | None = None,
        format_version: int = FORMAT_VERSION,
        recipe: str = "",
        quant_method: str = METHOD,
        **future: Any,
    ) -> None:
        check_version(format_version)
        del future
        self.quant_method = quant_method
        self.modules, self.format_version, self.recipe = modules or {}, format_version, recipe


@register_quantizer(METHOD)
class FeatherweightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces described modules by packed ones on the meta device, and keeps their stored dtypes."""

    requires_calibration = True

    def validate_environment(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing beyond torch is needed."""

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Any floating dtype runs."""
        return dtype

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **keywords: Any
    ) -> None:
        self._files = checkpoint_files or []
        head = _name_of(model, model.get_output_embeddings())
        for name, description in self.quantization_config.modules.items():
            place(model, name, description, head)

    def _process_model_after_weight_loading(self, model: nn.Module, **keywords: Any) -> nn.Module:
        restore_dtypes(model, self._files)
        return model

    def is_serializable(self, *arguments: Any, **keywords: Any) -> bool:
        """Packed buffers save as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights are frozen."""
        return False


def place(model: nn.Module, name: str, description: dict[str, Any], head: str | None) -> None:
    """Put an empty packed module in the place of `name`; a tied head follows its embedding."""
    weight = empty(description)
    original = model.get_submodule(name)
    if not isinstance(original, nn.Embedding):
        bias = getattr(original, "bias", None)
        model.set_submodule(name, PackedLinear(weight, None if bias is None else nn.Parameter(bias.data, requires_grad=False)))
        return
    tied = head is not None and model.config.get_text_config(decoder=True).tie_word_embeddings
    embedding = PackedEmbedding.like(original, weight)
    model.set_submodule(name, embedding)
    if tied and head is not None:
        model.set_submodule(head, TiedPackedLinear(embedding))
        model._tied_weights_keys = {}
        model.all_tied_weights_keys = {}


def restore_dtypes(model: nn.Module, files: list[str]) -> None:
    """Loading with `dtype=` casts every floating tensor, scales too: read those again as they are stored."""
    wanted: dict[str, tuple[nn.Module, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            for part, stored in module.stored_dtypes().items():
                if getattr(module, part).dtype != stored:
                    wanted[f"{name}.{part}"] = (module, part)
    for path in files if wanted else []:
        with safe_open(path, framework="pt") as file:
            for key in wanted.keys() & set(file.keys()):
                module, part = wanted[key]
                module._buffers[part] = file.get_tensor(key).to(getattr(module, part).device)


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if wanted is not None and module is wanted), None)
