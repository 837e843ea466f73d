"""CUDA kernels under a host compiler: the sources as they are, lanes as fibers (`warp_emulation/emulation.h`)."""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from featherweight.kernels.cuda.compiler import SOURCES

COMPILER = shutil.which("g++") or shutil.which("clang++")
HERE = Path(__file__).parent / "warp_emulation"
_FOLDER = tempfile.TemporaryDirectory(prefix="emulated-kernels-")


def launch(source, name, constants, grid, threads, shared, arguments, device):
    """As `kernels.cuda.cache_attention.Launch`, on CPU tensors."""
    kinds = tuple(type(argument) for argument in arguments)
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    _build(source, name, tuple(sorted(constants.items())), len(kinds))((ctypes.c_uint * 3)(*grid), threads, pointers)


@cache
def _build(source, name, constants, count):
    """The kernel's emulated launch: grid, threads, pointers to arguments."""
    text = f"""
#include "{source}"
#include <tuple>
#include <utility>
template <class... Given, std::size_t... At>
void call(void (*kernel)(Given...), void** pointers, std::index_sequence<At...>) {{
    kernel(*(std::remove_reference_t<Given>*)pointers[At]...);
}}
template <class... Given>
void launch(void (*kernel)(Given...), unsigned* grid, unsigned threads, void** pointers) {{
    static_assert(sizeof...(Given) == {count}, "arguments");
    emulation::run({{grid[0], grid[1], grid[2]}}, threads, [&] {{ call(kernel, pointers, std::index_sequence_for<Given...>()); }});
}}
extern "C" void emulate(unsigned* grid, unsigned threads, void** pointers) {{ launch({name}, grid, threads, pointers); }}
"""
    options = ["-DEMULATED", *(f"-D{key}={value}" for key, value in constants)]
    stem = Path(_FOLDER.name) / hashlib.sha256(repr((source, name, options)).encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(text)
    command = [COMPILER, "-std=c++17", "-O0", "-w", "-shared", "-fPIC", f"-I{HERE}", f"-I{SOURCES}", *options]
    run = subprocess.run([*command, f"{stem}.cpp", "-o", f"{stem}.so"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[:6000]
    library = ctypes.CDLL(f"{stem}.so")
    return library.emulate
