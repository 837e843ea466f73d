"""How keys and values are stored while a model generates."""

from featherweight.kv_cache.codec import CacheCodec, Codes, Constants
from featherweight.kv_cache.registry import CODECS, make_codec
from featherweight.kv_cache.settings import CacheSettings

__all__ = ["CODECS", "CacheCodec", "CacheSettings", "Codes", "Constants", "make_codec"]
