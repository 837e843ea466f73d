"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def return_freed_memory() -> None:
    """Hand pages that hold nothing any more back to the system, where the C library can (glibc).

    Blocks of a model come and go between pieces that stay; glibc keeps the gaps, which then grow by a block's temporaries for every
    few blocks that pass. Takes milliseconds.
    """
    trim = _trimmer()
    if trim is not None:
        trim(0)


@cache
def _trimmer() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return None
