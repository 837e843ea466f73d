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

    Messages through gloo fail by themselves once a rank is gone; one that computes, or waits inside NCCL, would never know.

    Args:
        name: of this run, alike on all ranks and unlike that of any run before.
        rank, count: this one's number, and how many there are.
    """

    def __init__(self, name: str, rank: int, count: int) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LOST))
        self._store = dist.PrefixStore(f"featherweight/{name}", store)
        self._rank, self._others = rank, [other for other in range(count) if other != rank]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if problem is not None:
            with suppress(RuntimeError):  # rank 0 keeps the store, and may be gone
                self._store.set("ended", f"rank {self._rank}: {str(problem).splitlines()[0] if str(problem) else kind}")
        self._over.set()
        self._thread.join(GRACE)

    def ended(self) -> str:
        """Which rank ended first, and why; "" if none said so."""
        try:
            return self._store.get("ended").decode() if self._store.check(["ended"]) else ""
        except RuntimeError:
            return "rank 0, which keeps the store of all, is gone"

    def _watch(self) -> None:
        beats, seen = 0, dict.fromkeys(self._others, (b"", time.monotonic()))
        while not self._over.wait(BEAT):
            beats += 1
            try:
                self._store.set(f"beat {self._rank}", str(beats))
                for other in self._others:
                    beat = self._store.get(f"beat {other}") if self._store.check([f"beat {other}"]) else b""
                    if beat != seen[other][0]:
                        seen[other] = (beat, time.monotonic())
            except RuntimeError:
                return self._end("rank 0, which keeps the store of all, is gone")
            silent = [other for other, (_, last) in seen.items() if time.monotonic() - last > LOST]
            told = self.ended() or (f"no sign of life of rank {silent[0]} for {LOST:.0f} seconds" if silent else "")
            if told:
                return self._end(told)
        return None

    def _end(self, told: str) -> None:
        """End this process, unless it ends by itself; what is written is whole, as after any kill."""
        if self._over.wait(GRACE):
            return
        print(
            f"error: rank {self._rank} ends, since another did\n  found: {told}\n"
            "  fix: the same command goes on after the last finished block, with any number of ranks",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(1)
