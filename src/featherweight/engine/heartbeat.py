"""The watch that ranks keep over each other, so that none waits for one that is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

#: Seconds between two beats; without one for so long a rank is taken for dead; so long a rank may take to end by itself.
BEAT, LOST, GRACE = 1.0, 30.0, 5.0


class Heartbeat:
    """A thread that tells the other ranks that this one lives, and ends this one where another ended or fell silent.

    Messages through gloo fail by themselves once a rank is gone; one that computes, or waits inside NCCL, would never know. Each
    watches the next, and tells all when that falls silent.

    Args:
        name: of this run, alike on all ranks and unlike that of any run before.
        rank, count: this one's number, and how many there are.
    """

    def __init__(self, name: str, rank: int, count: int) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LOST))
        self._store = dist.PrefixStore(f"featherweight/{name}", store)
        self._rank, self._next = rank, (rank + 1) % count
        self._told, self._answered, self._over = "", time.monotonic(), threading.Event()

    def __enter__(self) -> Heartbeat:
        self._answered = time.monotonic()
        for work in (self._beat, self._watch):  # the store may never answer, so one asks and another looks on
            threading.Thread(target=work, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if problem is not None:
            with suppress(RuntimeError):  # rank 0 keeps the store, and may be gone
                self._store.set("ended", f"rank {self._rank}: {str(problem).splitlines()[0] if str(problem) else kind}")
        self._over.set()

    def ended(self) -> str:
        """Which rank ended first, and why; "" if none said so."""
        try:
            return self._store.get("ended").decode() if self._store.check(["ended"]) else ""
        except RuntimeError:
            return "rank 0, which keeps the store of all, is gone"

    def _beat(self) -> None:
        """Say that this rank lives, and hear the others."""
        beats, seen, last, theirs = 0, b"", time.monotonic(), f"beat {self._next}"
        while not self._over.wait(BEAT) and not self._told:
            beats += 1
            with suppress(RuntimeError):  # `ended` says so
                self._store.set(f"beat {self._rank}", str(beats))
                beat = self._store.get(theirs) if self._store.check([theirs]) else b""
                if beat != seen:
                    seen, last = beat, time.monotonic()
                elif time.monotonic() - last > LOST and not self.ended():
                    self._store.set("ended", f"no sign of life of rank {self._next} for {LOST:.0f} seconds")
            self._told, self._answered = self.ended(), time.monotonic()

    def _watch(self) -> None:
        """End this process once another has ended, unless it ends by itself; what is written is whole, as after any kill."""
        while not self._told and time.monotonic() - self._answered < LOST:
            if self._over.wait(BEAT):
                return
        if self._over.wait(GRACE):
            return
        told = self._told or f"no answer from the store of rank 0 for {LOST:.0f} seconds"
        print(
            f"error: rank {self._rank} ends, since another did\n  found: {told}\n"
            "  fix: the same command goes on after the last finished block, with any number of ranks",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(1)
