"""Whether the disks have room for what a run will write, asked before its first block."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featherweight.errors import FeatherweightError
from featherweight.packed.files import file_bytes
from featherweight.planning.estimate import spilled_bytes, statistics_bytes

if TYPE_CHECKING:
    from featherweight.engine.walk import Walk


def check_room(walk: Walk) -> None:
    """Refuse to begin what cannot be finished: weight files not yet written, spilled activations, kept statistics.

    Raises:
        FeatherweightError: a disk with less free space than its folders will take.
    """
    finished = {entry.shard for entry in walk.journal.entries}
    layouts = walk.plan.shard_layouts()
    needs = {
        "weight files": (walk.output, sum(file_bytes(layouts[name]) for name in layouts if name not in finished)),
        "activations": (walk.output, spilled_bytes(walk.plan, walk.dtype.itemsize)),
    }
    kept = walk.store.room
    if kept is not None:
        needs["statistics"] = (kept, statistics_bytes(walk.plan))
    check_disks(needs)


def check_disks(needs: Mapping[str, tuple[Path, int]]) -> None:
    """Compare what folders will take with what is free on the disks they lie on.

    Args:
        needs: by what it is, the folder (which exists) and bytes.

    Raises:
        FeatherweightError: too little on one of the disks.
    """
    disks: dict[int, list[str]] = {}
    for what, (folder, size) in needs.items():
        if size:
            disks.setdefault(folder.stat().st_dev, []).append(what)
    for names in disks.values():
        folder, wanted = needs[names[0]][0], sum(needs[name][1] for name in names)
        free = shutil.disk_usage(folder).free
        if free < wanted:
            told = ", ".join(f"{name} {needs[name][1]:,}" for name in names)
            fix = "free space or choose an output on another disk"
            if "activations" in names:
                fix += ", fewer calibration windows, or --set engine.activations=memory"
            if "statistics" in names:
                fix += "; --set engine.keep_statistics=none keeps none"
            raise FeatherweightError(
                f"the disk is too small for this run: {told} bytes", found=f"{free:,} bytes free at {folder}",
                expected=f"{wanted:,} bytes", fix=fix,
            )  # fmt: skip
