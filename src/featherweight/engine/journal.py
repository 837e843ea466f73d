"""The journal: which shards are finished, so that a killed run goes on and another run's folder is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.packed.files import sha256, write_text

NAME = "journal.json"


@dataclass(frozen=True)
class Entry:
    """A finished shard.

    Attributes:
        shard: file name.
        sha256: of the file.
        rows: what the ledger says of each packed module in it: `{module: {"description": ..., "measured": ...}}`.
        made_from: hash of everything that decides the file.
        folded: names of the parameters in it that are not as the checkpoint has them.
        ranks: that made it together.
    """

    shard: str
    sha256: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_from: str = ""
    folded: list[str] = field(default_factory=list)
    ranks: int = 1


class Journal:
    """`journal.json` in the output folder; rewritten whole, atomically, after every shard."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], entries: list[Entry], finished: bool) -> None:
        self._folder, self._identity = folder, dict(identity)
        self.entries, self.finished = entries, finished

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> Journal:
        """The journal of `folder`, new or to be gone on with; every finished shard's hash is checked.

        Raises:
            FeatherweightError: the folder holds something else, a run with other settings, or a changed shard.
        """
        path = folder / NAME
        if not path.is_file():
            _require_empty(folder)
            journal = cls(folder, identity, [], False)
            journal._write()
            return journal
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            entries = [Entry(**entry) for entry in state["entries"]]
        except (ValueError, TypeError, KeyError) as problem:
            raise FeatherweightError(
                "the journal cannot be read",
                found=f"{path}: {problem}",
                expected="a journal of this version",
                fix="delete the folder or choose another output",
            ) from None
        _require_same(folder, state["identity"], json.loads(json.dumps(identity)))
        for partial in folder.glob("*.partial"):
            partial.unlink()
        for entry in entries:
            check_shard(folder / entry.shard, entry.sha256)
        return cls(folder, identity, entries, bool(state["finished"]))

    def add(self, entry: Entry) -> None:
        """Commit a finished shard: the resume point."""
        self.entries.append(entry)
        self._write()

    def finish(self) -> None:
        """The output is complete and has proven itself."""
        self.finished = True
        self._write()

    def _write(self) -> None:
        state = {"identity": self._identity, "finished": self.finished, "entries": [asdict(entry) for entry in self.entries]}
        write_text(self._folder / NAME, json.dumps(state, indent=1))


def read_entries(folder: Path) -> list[Entry]:
    """The finished shards of an output; none where there is no journal."""
    path = folder / NAME
    return [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]] if path.is_file() else []


def check_shard(path: Path, expected: str) -> None:
    """Compare a shard with its recorded hash.

    Raises:
        FeatherweightError: the shard is missing or its content changed.
    """
    if not path.is_file():
        raise FeatherweightError(
            "a weight file is missing", found=f"no {path}", expected=f"sha256 {expected}", fix="compress again"
        )
    found = sha256(path)
    if found != expected:
        raise FeatherweightError(
            "a weight file was changed after it was written",
            found=f"{path.name} with sha256 {found}",
            expected=expected,
            fix="copy the folder again from where it was made, or compress again into a new folder",
        )


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FeatherweightError("the output is a file", found=folder, expected="a new or empty folder")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if [name for name in held if not name.startswith(f"{NAME}.partial")]:
        raise FeatherweightError(
            "the output folder is not empty",
            found=f"{folder} holds {', '.join(held[:5])}{' ...' if len(held) > 5 else ''}",
            expected="a new or empty folder, or one with this run's own journal",
            fix="choose another output",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FeatherweightError(
            "the output folder cannot be made", found=problem, expected="a writable parent folder"
        ) from None


def _require_same(folder: Path, before: Any, now: Any) -> None:
    differing = list(_differences(before, now))
    if differing:
        shown = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, old, new in differing[:6])
        raise FeatherweightError(
            "the output folder belongs to a run with other settings",
            found=f"{folder}: {shown}",
            expected="the settings of the run that began there",
            fix="run the old command to go on, or choose another output",
        )


def _differences(before: Any, now: Any, path: str = ""):  # type: ignore[no-untyped-def]
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{path}.{index}")
    elif before != now:
        yield path, before, now
