"""How keys and values are stored while a model generates."""

from typing import TYPE_CHECKING, Any

from featherweight.kv_cache.attach import attach_cache, attached, detach_cache, reads_codes
from featherweight.kv_cache.codec import CacheCodec, Codes, Constants
from featherweight.kv_cache.registry import CODECS, make_codec
from featherweight.kv_cache.settings import CacheSettings

if TYPE_CHECKING:
    from featherweight.kv_cache.cache import CompressedCache

__all__ = [
    "CODECS",
    "CacheCodec",
    "CacheSettings",
    "Codes",
    "CompressedCache",
    "Constants",
    "attach_cache",
    "attached",
    "detach_cache",
    "make_codec",
    "reads_codes",
]


def __getattr__(name: str) -> Any:
    if name == "CompressedCache":  # it is a class of transformers', which loads when it is used
        from featherweight.kv_cache.cache import CompressedCache

        return CompressedCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
