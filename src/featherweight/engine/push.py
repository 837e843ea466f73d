"""An output on the Hugging Face hub, once it has proven itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.engine.verify import verify
from featherweight.errors import FeatherweightError

#: What a run leaves beside the model and nobody needs to load it.
LEFT_OUT = ("journal.json", "statistics/*", "*.partial", "report.html", ".*")


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be.

    Attributes:
        repository: `owner/name` on the hub.
        url: of the commit; empty if nothing was sent.
        files: names, in order.
        bytes: of these.
        proof: of `fw verify`, just before.
    """

    repository: str
    url: str
    files: list[str]
    bytes: int
    proof: dict[str, Any]


def push(
    folder: str | Path, repository: str, *, private: bool = False, dry_run: bool = False, device: str | None = None
) -> Pushed:
    """Verify the output in `folder`, then upload it with its model card to the hub as `owner/name`.

    Args:
        private: make the repository private if it is new.
        dry_run: verify and list, send nothing.

    Raises:
        FeatherweightError: not an output of ours, one that does not verify, a name that is not `owner/name`, no login, or an upload
            that the hub refused.
    """
    from fnmatch import fnmatch

    folder = Path(folder)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise FeatherweightError("not a repository's name", found=repository, expected="owner/name")
    proof = verify(folder, device=device)["proof"]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = [name for name in names if not any(fnmatch(name, pattern) for pattern in LEFT_OUT)]
    size = sum((folder / name).stat().st_size for name in files)
    url = "" if dry_run else _upload(folder, repository, files, private)
    return Pushed(repository, url, files, size, proof)


def _upload(folder: Path, repository: str, files: list[str], private: bool) -> str:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise FeatherweightError(
            "not logged in at the hub",
            found="no token",
            expected="a token that may write",
            fix="hf auth login, or set HF_TOKEN",
        )
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        sent = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message="Compressed by featherweight"
        )
    except Exception as problem:  # connection, rights, quota: each its own class, none a common parent
        raise FeatherweightError(
            f"the hub did not take {repository}",
            found=str(problem).strip().splitlines()[0][:300] if str(problem).strip() else type(problem).__name__,
            expected="a connection, and a token that may write there",
            fix="run the same command again: what has arrived is not sent twice",
        ) from problem
    return str(getattr(sent, "commit_url", sent))
