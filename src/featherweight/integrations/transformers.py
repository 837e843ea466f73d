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

from featherweight.integrations.config import CACHE_VERSION, FORMAT_VERSION, LINEARS, METHOD, check_version
from featherweight.kv_cache.attach import attach_cache
from featherweight.kv_cache.settings import CacheSettings
from featherweight.models.experts import separate_experts
from featherweight.packed.base import empty, layout_of
from featherweight.packed.placing import place


@register_quantization_config(METHOD)
class FeatherweightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` as transformers holds it."""

    def __init__(
        self,
        modules: dict[str, dict[str, Any]] | None = None,
        format_version: int = FORMAT_VERSION,
        recipe: str = "",
        quant_method: str = METHOD,
        kv_cache: dict[str, Any] | None = None,
        experts: str | None = None,
        **future: Any,
    ) -> None:
        check_version(format_version)
        del future
        self.quant_method = quant_method
        if kv_cache is not None:
            check_version(int(kv_cache.get("format_version", 1)), CACHE_VERSION)
            self.kv_cache = kv_cache
        if experts is not None:
            self.experts = experts
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
        if self._separates_experts:
            separate_experts(model)
        head = _name_of(model, model.get_output_embeddings())
        tied = head if model.config.get_text_config(decoder=True).tie_word_embeddings else None
        for name, description in self.quantization_config.modules.items():
            if tied and isinstance(model.get_submodule(name), nn.Embedding):
                model._tied_weights_keys, model.all_tied_weights_keys = {}, {}
            place(model, name, empty(description), tied_head=tied)

    def _process_model_after_weight_loading(self, model: nn.Module, **keywords: Any) -> nn.Module:
        restore_dtypes(model, self.quantization_config.modules, self._files)
        section = getattr(self.quantization_config, "kv_cache", None)
        if section is not None and model.can_generate():
            attach_cache(model, CacheSettings.from_dict(section["settings"]), section["constants"])
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *arguments: Any) -> list[Any]:
        """None where experts are linears: files then have the names of the modules, which transformers would fuse or rename."""
        return [] if self._separates_experts else super().update_weight_conversions(weight_conversions, *arguments)

    @property
    def _separates_experts(self) -> bool:
        return getattr(self.quantization_config, "experts", None) == LINEARS

    def is_serializable(self, *arguments: Any, **keywords: Any) -> bool:
        """Packed buffers save as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights are frozen."""
        return False


def restore_dtypes(model: nn.Module, modules: dict[str, dict[str, Any]], files: list[str]) -> None:
    """Loading with `dtype=` casts every floating tensor, scales too: read those again as they are stored."""
    wanted: dict[str, tuple[nn.Module, str]] = {}
    for name, description in modules.items():
        module = model.get_submodule(name)
        for part, (_, stored) in layout_of(description).items():
            if getattr(module, part).dtype != stored:
                wanted[f"{name}.{part}"] = (module, part)
    for path in files if wanted else []:
        with safe_open(path, framework="pt") as file:
            for key in wanted.keys() & set(file.keys()):
                module, part = wanted[key]
                module._buffers[part] = file.get_tensor(key).to(getattr(module, part).device)


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if wanted is not None and module is wanted), None)
