"""CUDA kernels of the package on a CPU: their own source, compiled by g++ with `emulation.h` in the place of the card."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.compiler import SOURCES

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the kernels for a CPU")


class EmulatedFunction:
    """As `driver.Function`, on a CPU."""

    def __init__(self, library, name):
        self.run = getattr(library, f"run_{name}")

    def clusters_at_once(self, threads, shared_bytes, cluster):
        return 2

    def launch(self, grid, block, shared_bytes, arguments, *, cluster=1, overlapped=True):
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.run((ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*block), ctypes.c_size_t(shared_bytes), cluster, pointers)

    def bind(self, grid, block, shared_bytes, arguments, *, cluster=1, overlapped=True):
        return lambda: self.launch(grid, block, shared_bytes, arguments, cluster=cluster)


@functools.cache
def emulated(source, name, constants, device=None):
    """As `driver.load`."""
    folder = Path(tempfile.mkdtemp())
    options = [f"-D{key}={value}" for key, value in constants]
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-DEMULATED", f"-I{Path(__file__).parent}", f"-I{SOURCES}"]
    subprocess.run([*command, *options, "-x", "c++", str(SOURCES / source), "-o", str(folder / "kernel.so")], check=True)
    return EmulatedFunction(ctypes.CDLL(str(folder / "kernel.so")), name)


def launch(source, name, constants, grid, threads, shared, arguments, device):
    """As `kernels.cuda.cache_attention.Launch`."""
    emulated(source, name, driver.constants_of(constants)).launch(grid, (threads, 1, 1), shared, arguments)


@pytest.fixture
def emulation(monkeypatch):
    """Launches go to the CPU."""
    monkeypatch.setattr(driver, "load", emulated)
