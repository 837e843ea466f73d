"""Where downloaded and converted models are kept, and how a file is told from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/featherweight`, or `~/.cache/featherweight` where that is unset or empty; not created here."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "featherweight"


def file_digest(path: Path) -> str:
    """The sha256 of a file's whole content, in hexadecimal; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
