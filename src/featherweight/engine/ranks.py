"""The processes that `torchrun` started to compress one model together: what each takes, and what they tell each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from featherweight.engine.heartbeat import Heartbeat
from featherweight.engine.launch import launched
from featherweight.errors import FeatherweightError

#: How long ranks wait for each other at the start, and at most while one of them computes; a dead one is noticed in seconds.
ARRIVAL, PATIENCE = timedelta(minutes=5), timedelta(hours=12)

#: Bytes at whose multiples tensors lie in a message.
ALIGNMENT = 16

Value = TypeVar("Value")


class Ranks:
    """Processes with equal plans; alone by default, and then every exchange returns what was put in.

    Attributes:
        rank: this one's number; rank 0 reads and writes journal, files and statistics.
        count: how many.
        device: where this one computes.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device or torch.device("cpu")
        self._heartbeat: Heartbeat | None = None

    @classmethod
    @contextmanager
    def started(cls, device: torch.device) -> Iterator[Ranks]:
        """All ranks of this launch; on GPUs each takes its own. While this is open, a rank that ends ends the others.

        Args:
            device: as asked for.

        Raises:
            FeatherweightError: ranks that do not come, more of them than GPUs, or no backend to talk through.
        """
        if launched() == 1:
            yield cls(device=device)
            return
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            device = _own_gpu(local)
        ranks = cls(*_join(device), device)
        name = ranks.on_first(lambda: os.urandom(8).hex())
        try:
            with Heartbeat(name, ranks.rank, ranks.count) as ranks._heartbeat:
                yield ranks
        except BaseException:
            atexit.unregister(dist.destroy_process_group)  # it would wait for the others
            raise

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that would not compress the same.

        Raises:
            FeatherweightError: on every rank, naming what differs and the values of each.
        """
        told = self.gather(dict(facts))
        differing = [key for key in facts if any(each.get(key) != told[0].get(key) for each in told)]
        if differing:
            shown = (
                f"{key}: " + ", ".join(f"{each.get(key)} on rank {rank}" for rank, each in enumerate(told)) for key in differing
            )
            raise FeatherweightError(
                "the ranks would not compress the same", found="; ".join(shown), expected="equal on every rank",
                fix="start the same command on the same files and versions everywhere",
            )  # fmt: skip

    def share(self, tokens: Tensor, batch_size: int, *, whole_batches: bool) -> tuple[Tensor, int]:
        """This rank's tokens, and its batch size.

        Args:
            tokens: of all ranks, `[samples, length]`, read in batches of `batch_size`.
            whole_batches: deal out batches; else every rank gets its part of every batch.

        Raises:
            FeatherweightError: a batch with fewer windows than there are ranks to share it.
        """
        batches = tokens.split(batch_size)
        if whole_batches and len(batches) >= self.count:
            mine = batches[self.rank * len(batches) // self.count : (self.rank + 1) * len(batches) // self.count]
        elif min(map(len, batches)) >= self.count:
            mine = tuple(batch.tensor_split(self.count)[self.rank] for batch in batches)
        else:
            raise FeatherweightError(
                "a batch of calibration windows cannot be shared by all ranks",
                found=f"batches of {', '.join(map(str, sorted({len(batch) for batch in batches})))} windows, {self.count} ranks",
                expected="a window of every batch for every rank",
                fix=f"--set calibration.batch_size={self.count} and --samples a multiple of it, or fewer ranks",
            )
        return torch.cat(mine), len(mine[0])

    def on_first(self, work: Callable[[], Value]) -> Value:
        """What rank 0 makes, or raises, on every rank; the others wait for it."""
        return self.on(0, work)

    def on(self, source: int, work: Callable[[], Value]) -> Value:
        """What rank `source` makes, or the error it raises, on every rank; tensors lie on the device of each.

        Raises:
            FeatherweightError: that of `work`, or a rank that ended.
        """
        if self.count == 1:
            return work()
        value: Any = None
        failed: FeatherweightError | None = None
        if self.rank == source:
            try:
                value = work()
            except FeatherweightError as problem:
                failed = problem
        message = [_as_bytes((value, failed and failed.as_dict())) if self.rank == source else None]
        with self._exchange():
            dist.broadcast_object_list(message, src=source)
        if failed is not None:
            raise failed
        if self.rank == source:
            return value
        value, error = _from_bytes(message[0], self.device)
        if error is not None:
            raise FeatherweightError(**error)
        return value

    def gather(self, value: Value) -> list[Value]:
        """Small values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._exchange():
            dist.all_gather_object(found, value)
        return found

    def exchange(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Tensors of all ranks by name, in the order of ranks; one message from each."""
        if self.count == 1:
            return [dict(tensors)]
        told = self.gather({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
        found = []
        for source, layout in enumerate(told):
            sizes = {name: _bytes(shape, dtype) for name, (shape, dtype) in layout.items()}
            buffer = torch.zeros(sum(map(_padded, sizes.values())), dtype=torch.uint8, device=self.device)
            places = dict(zip(layout, buffer.split([_padded(size) for size in sizes.values()]), strict=True)) if layout else {}
            if source == self.rank:
                for name, place in places.items():
                    place[: sizes[name]] = tensors[name].to(self.device).contiguous().reshape(-1).view(torch.uint8)
            if len(buffer):
                with self._exchange():
                    dist.broadcast(buffer, src=source)
            if source == self.rank:
                found.append(dict(tensors))
                continue
            found.append(
                {
                    name: places[name][: sizes[name]].clone().view(dtype).reshape(shape)
                    for name, (shape, dtype) in layout.items()
                }
            )
        return found

    def reduce_(self, tensor: Tensor, owners: Sequence[int], *, maximum: bool = False) -> Tensor:
        """`tensor` summed (or its maximum) over the ranks, in place, at its owners; at the others it is left undefined."""
        if self.count > 1:
            operation = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
            with self._exchange():
                dist.reduce(tensor, min(owners), operation)
                if len(owners) > 1:
                    dist.broadcast(tensor, min(owners))
        return tensor

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over the ranks, in place, on all of them."""
        if self.count > 1:
            with self._exchange():
                dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """A message among ranks, which fails where one of them ended."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            ended = self._heartbeat.ended() if self._heartbeat else ""
            raise FeatherweightError(
                f"rank {self.rank} cannot go on without the others",
                found=ended or f"a rank that left: {str(problem).splitlines()[0]}",
                expected=f"{self.count} ranks until the end",
                fix="mend what that rank says; the same command goes on after the last finished block, with any number of ranks",
            ) from None


def _own_gpu(local: int) -> torch.device:
    if local >= torch.cuda.device_count():
        raise FeatherweightError(
            "there are more ranks than GPUs", found=f"local rank {local}, {torch.cuda.device_count()} GPUs",
            expected="a GPU for every rank", fix=f"--nproc-per-node {torch.cuda.device_count()}, or --device cpu",
        )  # fmt: skip
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _join(device: torch.device) -> tuple[int, int]:
    """Rank and count in the group of all processes; CPU tensors go through gloo, those of GPUs through NCCL."""
    needed = {"gloo": dist.is_available() and dist.is_gloo_available()}
    if device.type == "cuda":
        needed["nccl"] = dist.is_available() and dist.is_nccl_available()
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise FeatherweightError(
            f"ranks cannot talk through {' and '.join(missing)}", found=f"torch {torch.__version__} without it",
            expected="a build of torch with it", fix="install torch for this machine, or start one process",
        )  # fmt: skip
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            from torch.distributed.rendezvous import rendezvous

            store, rank, count = next(iter(rendezvous("env://", timeout=ARRIVAL)))
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)
        except RuntimeError as problem:
            raise FeatherweightError(
                "the ranks did not find each other", found=str(problem).splitlines()[0],
                expected=f"{os.environ['WORLD_SIZE']} ranks at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
                fix="start all of them within five minutes, on nodes that reach that address",
            ) from None  # fmt: skip
    return dist.get_rank(), dist.get_world_size()


def _as_bytes(value: Any) -> bytes:
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_bytes(message: Any, device: torch.device) -> Any:
    """The inverse; what lay on another rank's GPU lies on this one's."""
    places = {f"cuda:{index}": str(device) for index in range(torch.cuda.device_count())}
    return torch.load(BytesIO(message), map_location=places, weights_only=False)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
