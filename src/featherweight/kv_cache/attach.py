"""Making a transformers model use a compressed cache whenever it generates."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

from featherweight.errors import FeatherweightError
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.kv_cache.settings import CacheSettings
from featherweight.kv_cache.shapes import cache_shapes, check_shapes

if TYPE_CHECKING:
    from transformers import GenerationConfig

Model = TypeVar("Model")
#: Our attention's name among transformers' implementations; see `featherweight.kv_cache.attention`.
ATTENTION = "featherweight_cache"
_DRAWN, _BEFORE = "_featherweight_cache", "_featherweight_attention_before"


def attach_cache(model: Model, settings: CacheSettings, fingerprint: Sequence[Any] | None = None) -> Model:
    """From now on `model.generate` without a cache makes a `CompressedCache`, and attention reads its codes.

    A forward that is given no cache is as before. A model without an interchangeable attention keeps its own and has the codes
    decoded at every step: the same, but slow; `reads_codes` tells.

    Args:
        model: a decoder of transformers; changed in place and returned.
        settings: which codec stores what.
        fingerprint: of the constants that a saved model was compressed with, to be met.

    Raises:
        FeatherweightError: a model whose cache cannot be compressed, a head dimension that a codec cannot serve, or other
            constants than the saved ones.
    """
    owner: Any = model
    shapes = cache_shapes(owner.config)
    check_shapes(settings, shapes)
    if not owner._supports_default_dynamic_cache():
        raise FeatherweightError(
            "the model makes a cache of its own kind", found=type(owner).__name__, expected="keys and values in a Cache",
            fix="leave kv_cache out",
        )  # fmt: skip
    drawn = DrawnConstants(settings, shapes)
    if fingerprint is not None:
        drawn.check(fingerprint)
    detach_cache(model)
    setattr(owner, _DRAWN, drawn)
    if owner._can_set_attn_implementation() and owner._supports_sdpa:
        setattr(owner, _BEFORE, owner.config._attn_implementation)
        import_module("featherweight.kv_cache.attention")  # registers it
        owner.set_attn_implementation(ATTENTION)
    owner._prepare_cache_for_generation = MethodType(_prepare_cache, owner)
    return model


def detach_cache(model: Model) -> Model:
    """Undo `attach_cache`; nothing to a model without."""
    owner: Any = model
    if attached(model) is not None:
        delattr(owner, _DRAWN)
        del owner._prepare_cache_for_generation
        if hasattr(owner, _BEFORE):
            owner.set_attn_implementation(getattr(owner, _BEFORE))
            delattr(owner, _BEFORE)
    return model


def attached(model: object) -> DrawnConstants | None:
    """The settings and constants of `attach_cache`, None for a model without."""
    known: DrawnConstants | None = getattr(model, _DRAWN, None)
    return known


def reads_codes(model: object) -> bool:
    """Whether the model's attention reads codes, rather than having them decoded at every step."""
    return hasattr(model, _BEFORE)


def _prepare_cache(self: Any, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *rest: Any) -> Any:
    """In place of the method of the same name: the cache of a generation that was given none."""
    from featherweight.kv_cache.cache import CompressedCache

    if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
        return type(self)._prepare_cache_for_generation(self, generation_config, model_kwargs, *rest)
    if generation_config.cache_implementation is not None:
        raise FeatherweightError(
            "two caches were asked for", found=f"cache_implementation={generation_config.cache_implementation!r}",
            expected="none beside the model's kv_cache", fix="featherweight.kv_cache.detach_cache(model)",
        )  # fmt: skip
    cache = CompressedCache.from_model(self)
    if generation_config.is_assistant:
        cache.activate_past_recording()
    model_kwargs["past_key_values"] = cache
    return None
