"""CUDA C++ of this package to machine code: by NVRTC, when first needed, kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from featherweight.errors import FeatherweightError
from featherweight.kernels.folder import kernel_folder

SOURCES = Path(__file__).parent / "source"


def build(source: str, constants: Mapping[str, int], architecture: str) -> bytes:
    """Machine code of `source` (a file of `source/`) with `constants` defined, for `architecture` ("sm_90").

    Compiled once for each content of all sources, constants, architecture and compiler; kept in the user's cache folder.

    Raises:
        FeatherweightError: no NVRTC, or the compiler's own words where it refuses.
    """
    library = _library()
    options = ["--std=c++17", f"--gpu-architecture={architecture}", *(f"-D{name}={value}" for name, value in constants.items())]
    key = hashlib.sha256(repr((_version(library), options, source, sorted(_sources().items()))).encode()).hexdigest()
    kept = kernel_folder() / f"{Path(source).stem}-{key[:32]}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    code = _compile(library, source, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=kept.parent, prefix=kept.name, delete=False
        ) as partial:  # other threads do the same
            partial.write(code)
        Path(partial.name).replace(kept)
    except OSError:
        pass  # a folder that cannot be written costs a second at the next start, no more
    return code


@cache
def missing() -> str:
    """Why nothing can be compiled here; "" if it can."""
    try:
        _library()
    except FeatherweightError as problem:
        return str(problem).splitlines()[0]
    return ""


def _compile(library: ctypes.CDLL, source: str, options: list[str]) -> bytes:
    others = {name: text for name, text in _sources().items() if name != source}
    names = (ctypes.c_char_p * len(others))(*(name.encode() for name in others))
    texts = (ctypes.c_char_p * len(others))(*(text.encode() for text in others.values()))
    program = ctypes.c_void_p()
    text = _sources()[source].encode()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), len(others), texts, names))
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), arguments):
            raise FeatherweightError("a kernel does not compile", found=f"{source}, {options}: {_log(library, program)}")
        size = ctypes.c_size_t()
        _check(library, library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(library, library.nvrtcGetCUBIN(program, code))
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _log(library: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(library, library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(library, library.nvrtcGetProgramLog(program, text))
    return text.value.decode(errors="replace")


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise FeatherweightError("NVRTC failed", found=library.nvrtcGetErrorString(status).decode())


@cache
def _library() -> ctypes.CDLL:
    tried = []
    for place in _places():
        try:
            for part in Path(place).parent.glob("libnvrtc-builtins.so.*") if isinstance(place, Path) else ():
                ctypes.CDLL(str(part))  # which NVRTC asks for by its name alone
            return ctypes.CDLL(str(place))
        except OSError as problem:
            tried.append(str(problem))
    raise FeatherweightError(
        "NVRTC, CUDA's run-time compiler, was not found",
        found="; ".join(tried) or "no library",
        expected="the library that a CUDA build of torch brings along",
        fix="install torch with CUDA, or the package nvidia-cuda-nvrtc",
    )


def _places() -> Iterator[str | Path]:
    """Where NVRTC may be, that of torch's own CUDA first."""
    import torch

    major = (torch.version.cuda or "13").split(".")[0]
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(folder).glob(f"*/lib/libnvrtc.so.{major}*"))
    yield f"libnvrtc.so.{major}"
    yield "libnvrtc.so"


@cache
def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@cache
def _sources() -> dict[str, str]:
    """Text of every file that kernels include, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()) if path.suffix in (".cu", ".cuh")}
