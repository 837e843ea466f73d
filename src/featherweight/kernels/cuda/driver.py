"""Compiled kernels on a device: loaded into torch's context, launched on torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda.compiler import build

#: `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`; launch attributes `CLUSTER_DIMENSION`, `PROGRAMMATIC_STREAM_SERIALIZATION`.
_SHARED_BYTES, _CLUSTER, _OVERLAPPED = 8, 4, 6


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16))


class _Configuration(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Function:
    """One kernel, loaded on one device."""

    def __init__(self, code: bytes, name: str, device: torch.device) -> None:
        self._driver, self._code = _driver(), code
        self._module, self._handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._shared, self._device, self._context = 48 << 10, device, _context(device)
        self._clusters: dict[tuple[int, int, int], int] = {}
        with self._current():
            _check(self._driver.cuModuleLoadData(ctypes.byref(self._module), code))
            _check(self._driver.cuModuleGetFunction(ctypes.byref(self._handle), self._module, name.encode()))

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The device's context is the calling thread's; a thread that had none keeps it."""
        before = ctypes.c_void_p()
        _check(self._driver.cuCtxGetCurrent(ctypes.byref(before)))
        if before.value == self._context.value:
            yield
            return
        _check(self._driver.cuCtxSetCurrent(self._context))
        try:
            yield
        finally:
            if before.value:
                _check(self._driver.cuCtxSetCurrent(before))

    def allow_shared(self, count: int) -> None:
        """Let blocks have so many bytes of shared memory.

        Raises:
            FeatherweightError: more than the device has.
        """
        if count > self._shared:
            _check(self._driver.cuFuncSetAttribute(self._handle, _SHARED_BYTES, count))
            self._shared = count

    def clusters_at_once(self, threads: int, shared_bytes: int, cluster: int) -> int:
        """Clusters of so many blocks that the device holds at a time."""
        asked = (threads, shared_bytes, cluster)
        if asked not in self._clusters:
            attributes, count = (_Attribute * 1)(), ctypes.c_int()
            attributes[0].id, attributes[0].value[:3] = _CLUSTER, (1, cluster, 1)
            configuration = _Configuration(1, cluster, 1, threads, 1, 1, shared_bytes, None, attributes, 1)
            with self._current():
                self.allow_shared(shared_bytes)
                ask = self._driver.cuOccupancyMaxActiveClusters
                _check(ask(ctypes.byref(count), self._handle, ctypes.byref(configuration)))
            self._clusters[asked] = max(1, count.value)
        return self._clusters[asked]

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        arguments: Sequence[ctypes._SimpleCData | ctypes.Structure],
        *,
        cluster: int = 1,
        overlapped: bool = True,
    ) -> None:
        """Start the kernel on torch's current stream.

        Args:
            grid, block: three sizes each.
            arguments: as the kernel takes them.
            cluster: blocks along the grid's second dimension that form a cluster.
            overlapped: it may begin before the kernel ahead of it is done (and waits for it itself).
        """
        self.bind(grid, block, shared_bytes, arguments, cluster=cluster, overlapped=overlapped)()

    def bind(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        arguments: Sequence[ctypes._SimpleCData | ctypes.Structure],
        *,
        cluster: int = 1,
        overlapped: bool = True,
    ) -> Callable[[], None]:
        """`launch` to be called again and again on the present stream, with what `arguments` then hold."""
        attributes, count = (_Attribute * 2)(), 0
        for wanted, kind, value in ((cluster > 1, _CLUSTER, (1, cluster, 1)), (overlapped, _OVERLAPPED, (1,))):
            if wanted:
                attributes[count].id, attributes[count].value[: len(value)] = kind, value
                count += 1
        stream = torch.cuda.current_stream(self._device).cuda_stream
        configuration = _Configuration(*grid, *block, shared_bytes, stream, attributes, count)
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        start, handle, told = self._driver.cuLaunchKernelEx, self._handle, ctypes.byref(configuration)
        with self._current():
            self.allow_shared(shared_bytes)

        def run(held: object = arguments) -> None:
            with self._current():
                _check(start(told, handle, pointers, None))

        return run


@cache
def load(source: str, name: str, constants: tuple[tuple[str, int], ...], device: torch.device) -> Function:
    """Kernel `name` of a source file compiled with `constants` for `device`."""
    major, minor = torch.cuda.get_device_capability(device)
    own = "a" if (major, minor) == (9, 0) else ""  # with instructions that only this architecture has
    return Function(build(source, dict(constants), f"sm_{major}{minor}{own}"), name, device)


def constants_of(values: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """As `load` wants them."""
    return tuple(sorted(values.items()))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; one where there is no CUDA."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _context(device: torch.device) -> ctypes.c_void_p:
    """The context that torch uses on a device, kept for as long as the process lives."""
    torch.cuda.current_stream(device)  # the driver is initialised
    index = torch.cuda.current_device() if device.index is None else device.index
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_driver().cuDeviceGet(ctypes.byref(handle), index))
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    return context


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as problem:
        raise FeatherweightError("CUDA's driver was not found", found=str(problem), expected="libcuda.so.1") from None


def _check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise FeatherweightError("CUDA's driver failed", found=(text.value or b"").decode() or f"status {status}")
