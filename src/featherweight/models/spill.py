"""Hidden states between two blocks on disk, for models and calibrations whose activations do not fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError


@dataclass(frozen=True)
class _Place:
    """Where one batch lies in the file, and what it was."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class SpilledStates(Sequence[Tensor]):
    """Tensors in one file, each read when it is asked for, onto the device that it came from.

    A batch is replaced in its own place, so the file never grows beyond one set of them. The file has no name: its space is free
    again when this object or the process goes.

    Args:
        folder: on the disk that is to hold them.
        batches: the first ones, written as they come.
    """

    def __init__(self, folder: Path, batches: Iterable[Tensor] = ()) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives as long as this object
        self._places: list[_Place] = []
        for states in batches:
            self.append(states)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of every batch, without reading any."""
        return [place.shape for place in self._places]

    def append(self, states: Tensor) -> None:
        """One more batch.

        Raises:
            FeatherweightError: the disk is full.
        """
        end = self._places[-1].offset + _bytes(self._places[-1]) if self._places else 0
        self._places.append(_Place(end, tuple(states.shape), states.dtype, states.device))
        self._write(self._places[-1], states)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """One batch, or several, read now."""
        if isinstance(index, slice):
            return [self._read(place) for place in self._places[index]]
        return self._read(self._places[index])

    def __setitem__(self, index: int, states: Tensor) -> None:
        """Another batch of the same shape in the place of one.

        Raises:
            FeatherweightError: another shape or dtype.
        """
        place = self._places[index]
        if (tuple(states.shape), states.dtype) != (place.shape, place.dtype):
            raise FeatherweightError(
                "hidden states changed their form", found=f"{list(states.shape)} {states.dtype}",
                expected=f"{list(place.shape)} {place.dtype}",
            )  # fmt: skip
        self._write(place, states)

    def _write(self, place: _Place, states: Tensor) -> None:
        raw = memoryview(states.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy())
        self._file.seek(place.offset)
        try:
            while raw.nbytes:
                raw = raw[self._file.write(raw) :]
        except OSError as problem:
            raise FeatherweightError(
                "activations cannot be spilled", found=problem, expected=f"room for {raw.nbytes:,} more bytes",
                fix="free space, or --set engine.activations=memory; the same command goes on from the last finished block",
            ) from None  # fmt: skip

    def _read(self, place: _Place) -> Tensor:
        states = torch.empty(place.shape, dtype=place.dtype)
        raw = memoryview(states.view(torch.uint8).reshape(-1).numpy())
        self._file.seek(place.offset)
        while raw.nbytes:
            read = self._file.readinto(raw)
            raw = raw[read:]
        return states.to(place.device)


def _bytes(place: _Place) -> int:
    return torch.Size(place.shape).numel() * place.dtype.itemsize
