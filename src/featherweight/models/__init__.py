"""Models as we see them: where they come from, their structure, their weights, their blocks run one by one.

Names load when they are used; importing this package alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherweight.models.axes import find_axes, find_producers
    from featherweight.models.axis import Axis, Producer
    from featherweight.models.cache import cache_folder
    from featherweight.models.draw import draw_transform
    from featherweight.models.folding import fold
    from featherweight.models.producers import find_all_producers
    from featherweight.models.replay import BlockCall, BlockInputs, capture, finish
    from featherweight.models.skeleton import build_skeleton, materialize, release
    from featherweight.models.source import ModelSource, resolve_model
    from featherweight.models.structure import Linear, Structure, find_structure
    from featherweight.models.transforms import Diagonal, Hadamard, Permutation, Transform
    from featherweight.models.weights import Weights, open_weights

_HOMES = {
    "axes": ("find_axes", "find_producers"),
    "axis": ("Axis", "Producer"),
    "cache": ("cache_folder",),
    "draw": ("draw_transform",),
    "folding": ("fold",),
    "producers": ("find_all_producers",),
    "replay": ("BlockCall", "BlockInputs", "capture", "finish"),
    "skeleton": ("build_skeleton", "materialize", "release"),
    "source": ("ModelSource", "resolve_model"),
    "structure": ("Linear", "Structure", "find_structure"),
    "transforms": ("Diagonal", "Hadamard", "Permutation", "Transform"),
    "weights": ("Weights", "open_weights"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Axis",
    "BlockCall",
    "BlockInputs",
    "Diagonal",
    "Hadamard",
    "Linear",
    "ModelSource",
    "Permutation",
    "Producer",
    "Structure",
    "Transform",
    "Weights",
    "build_skeleton",
    "cache_folder",
    "capture",
    "draw_transform",
    "find_all_producers",
    "find_axes",
    "find_producers",
    "find_structure",
    "finish",
    "fold",
    "materialize",
    "open_weights",
    "release",
    "resolve_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"featherweight.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'featherweight.models' has no attribute {name!r}")
