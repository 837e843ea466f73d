"""What the layers' codecs draw: once a model, on the CPU; the same wherever a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kv_cache.settings import CacheSettings
from featherweight.kv_cache.shapes import LayerShape

_DIGITS = 6
_TOLERANCE = 1e-3  # relative; another machine's factorisations differ by rounding


class DrawnConstants:
    """Projections, rotations and tables of every layer, kept for every device they were asked for on."""

    def __init__(self, settings: CacheSettings, shapes: Sequence[LayerShape]) -> None:
        self.settings, self.shapes = settings, tuple(shapes)
        self._drawn: dict[tuple[int, torch.device], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def of(self, layer: int, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of a layer's keys and values."""
        if (layer, device) not in self._drawn:
            if device.type == "cpu":
                self._drawn[layer, device] = self._draw(layer)
            else:
                keys, values = self.of(layer, torch.device("cpu"))
                self._drawn[layer, device] = _moved(keys, device), _moved(values, device)
        return self._drawn[layer, device]

    def _draw(self, layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator, shape = self.settings.generator(layer), self.shapes[layer]
        keys, values = self.settings.codecs(layer)
        return keys.constants(shape.key_dim, generator), values.constants(shape.value_dim, generator)

    def fingerprint(self) -> list[list[Any]]:
        """Of every tensor: layer, part, name, its norm, and one number that depends on every value and its place."""
        return [
            [layer, part, name, *_summary(drawn)]
            for layer in range(len(self.shapes))
            for part, tensors in zip(("keys", "values"), self.of(layer, torch.device("cpu")), strict=True)
            for name, drawn in sorted(tensors.items())
        ]

    def check(self, saved: Sequence[Sequence[Any]]) -> None:
        """Compare with the fingerprint that was saved with a model.

        Raises:
            FeatherweightError: what is drawn here is not what the model was saved with.
        """
        here = self.fingerprint()
        for mine, told in zip(here, saved, strict=False):
            near = abs(mine[3] - told[3]) <= _TOLERANCE * mine[3] and abs(mine[4] - told[4]) <= _TOLERANCE * mine[3]
            if list(mine[:3]) != list(told[:3]) or not near:
                raise _mismatch(told, mine)
        if len(here) != len(saved):
            raise _mismatch(f"{len(saved)} tensors", f"{len(here)}")


def _summary(drawn: Tensor) -> tuple[float, float]:
    flat = drawn.reshape(-1).double()
    places = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    told = float(flat.norm()), float(flat @ places.cos())
    return round(told[0], _DIGITS), round(told[1], _DIGITS)


def _moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _mismatch(saved: object, drawn: object) -> FeatherweightError:
    return FeatherweightError(
        "the saved projection does not match", found=f"drawn here: {drawn}", expected=f"saved: {saved}",
        fix="use the torch and featherweight versions of the output's ledger.json, or compress again",
    )  # fmt: skip
