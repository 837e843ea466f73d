"""featherweight makes large language models light: compress after training, store real bytes, run from them.

Importing this package imports neither torch nor transformers; both load when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featherweight.errors import FeatherweightError
from featherweight.integrations.hook import install as _install
from featherweight.version import __version__

if TYPE_CHECKING:
    from featherweight.api import answer, compress, evaluate, load, plan, shrink, verify

__all__ = ["FeatherweightError", "__version__", "answer", "compress", "evaluate", "load", "plan", "shrink", "verify"]

_install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("featherweight.api"), name)
    raise AttributeError(f"module 'featherweight' has no attribute {name!r}")
