"""Where compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path


def kernel_folder() -> Path:
    """The user's cache folder for them; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "featherweight" / "kernels"
