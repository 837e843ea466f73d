"""Tensors that grow by tokens without being copied at every step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_LEAST = 64  # entries to spare after a copy, at least
_SPARE = 4  # a quarter of the entries
_EIGHTS = 8  # rooms are whole eights of entries, so that every sequence and head begins at 16 bytes


class Growing:
    """A tensor `[batch, heads, entries, ...]` to which entries are added at the end, and taken from either end.

    A full buffer is replaced by one a quarter larger, so each entry is copied some five times however many there are, and at
    most a fifth of the memory is spare.
    """

    def __init__(self, empty: Tensor) -> None:
        """From a tensor without entries, which tells shape, dtype and device."""
        self._buffer, self._start, self._stop = empty, 0, empty.shape[2]

    @property
    def live(self) -> Tensor:
        """The entries, a view."""
        return self._buffer[:, :, self._start : self._stop]

    def __len__(self) -> int:
        return self._stop - self._start

    def append(self, fresh: Tensor) -> None:
        """Add `fresh [batch, heads, entries, ...]` at the end."""
        count = fresh.shape[2]
        if self._stop + count > self._buffer.shape[2]:
            old, length = self.live, len(self)
            room = length + count + max(_LEAST, (length + count) // _SPARE)
            room += -room % _EIGHTS
            self._buffer = old.new_empty(*old.shape[:2], room, *old.shape[3:])
            self._buffer[:, :, :length] = old
            self._start, self._stop = 0, length
        self._buffer[:, :, self._stop : self._stop + count] = fresh
        self._stop += count

    @property
    def buffer(self) -> Tensor:
        """The whole buffer, of which nothing was taken from the front: entries, then room."""
        assert self._start == 0
        return self._buffer

    def reserve(self, count: int) -> None:
        """Make room for `count` entries in all, so that the buffer does not move before there are more."""
        if self._buffer.shape[2] < count:
            old, length = self.live, len(self)
            self._buffer = old.new_empty(*old.shape[:2], count + -count % _EIGHTS, *old.shape[3:])
            self._buffer[:, :, :length] = old
            self._start, self._stop = 0, length

    def count_as(self, count: int) -> None:
        """Take the first `count` places of the buffer as the entries, whoever wrote them there."""
        self._start, self._stop = 0, count

    def take(self, count: int) -> Tensor:
        """Remove the oldest `count` entries and return them; valid until the next `append`."""
        taken = self._buffer[:, :, self._start : self._start + count]
        self._start += count
        return taken

    def compact(self) -> None:
        """Give back the memory of a buffer that is more than half empty."""
        if 2 * len(self) + _LEAST < self._buffer.shape[2]:
            self.change_batch(lambda live: live)

    def truncate(self, count: int) -> None:
        """Keep the oldest `count` entries, or all where there are fewer."""
        self._stop = min(self._stop, self._start + count)

    def change_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the entries by `change(entries)`, which selects or repeats along the batch."""
        changed = change(self.live)
        count = changed.shape[2]
        self._buffer = changed.new_empty(*changed.shape[:2], count + -count % _EIGHTS, *changed.shape[3:])
        self._buffer[:, :, :count] = changed
        self._start, self._stop = 0, count

    @property
    def nbytes(self) -> int:
        """Of the entries."""
        return self.live.numel() * self._buffer.itemsize

    @property
    def allocated(self) -> int:
        """Bytes of the whole buffer."""
        return self._buffer.numel() * self._buffer.itemsize
