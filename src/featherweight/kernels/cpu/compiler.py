"""C of this package to a shared library: by the system's compiler, when first needed, kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from featherweight.errors import FeatherweightError
from featherweight.kernels.folder import kernel_folder

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


@cache
def library(name: str) -> ctypes.CDLL:
    """The compiled `name.c`, for every instruction set it knows; it chooses when it runs.

    Compiled once for each content of all sources, compiler and flags (some seconds); kept in the user's cache folder.

    Raises:
        FeatherweightError: no compiler, or the compiler's own words where it refuses.
    """
    compiler = _compiler()
    text = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".c", ".h")]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=60).stdout
    key = hashlib.sha256(repr((compiler, version, platform.machine(), FLAGS, text)).encode()).hexdigest()
    kept = kernel_folder() / f"{name}-{key[:32]}.so"
    if not kept.is_file():
        kept = _compile(compiler, SOURCES / f"{name}.c", kept)
    try:
        return ctypes.CDLL(str(kept))
    except OSError as problem:
        raise FeatherweightError("a compiled kernel cannot be loaded", found=problem, fix=f"delete {kept}") from problem


@cache
def parallel() -> int:
    """Address of the function by which torch's own OpenMP runs something in its threads; 0 where it has none."""
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


@cache
def missing(name: str) -> str:
    """Why `name.c` does not run here; "" if it does."""
    try:
        library(name)
    except FeatherweightError as problem:
        return str(problem).splitlines()[0]
    return ""


def _compiler() -> str:
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return found
    raise FeatherweightError(
        "no C compiler was found", expected="cc, gcc or clang", fix="install one (Debian: gcc, macOS: xcode-select --install)"
    )


def _compile(compiler: str, source: Path, kept: Path) -> Path:
    """Where the library lies: at `kept`, or in a temporary folder if that cannot be written."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=kept.parent))
    except OSError:
        folder = Path(tempfile.mkdtemp())
    made = folder / kept.name
    command = [compiler, *FLAGS, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise FeatherweightError(f"{compiler} does not compile a kernel: {done.stderr.strip()[:2000]}", found=" ".join(command))
    if folder.parent != kept.parent:
        return made
    made.replace(kept)
    folder.rmdir()
    return kept
