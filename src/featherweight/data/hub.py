"""Files and data sets of the Hugging Face hub, online or from its local cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError


def hub_file(repository: str, filename: str, *, revision: str | None = None, offline: bool = False, fix: str = "") -> Path:
    """The local path of one file of a data set, downloaded unless it is cached.

    Args:
        repository: `owner/name`.
        filename: path inside the repository.
        revision: branch, tag or commit; None for the main branch.
        offline: look in the cache only.
        fix: what to do when it cannot be had.

    Raises:
        FeatherweightError: offline and not cached, or the download failed.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repository, filename, repo_type="dataset", revision=revision, local_files_only=offline)
    except Exception as error:  # connection, authentication, missing entry: each its own class, none a common parent
        raise _unavailable(f"{repository}: {filename}", error, offline, fix) from error
    return Path(path)


def hub_rows(
    repository: str, config: str | None, splits: tuple[str, ...], *, data_files: str | None, column: str, offline: bool
) -> list[Any]:
    """One column of a hub data set, from the first of `splits` that it has.

    Offline, the cached snapshot of the repository is read in place of the hub.

    Raises:
        FeatherweightError: not to be had, no such split, or no such column.
    """
    datasets = _datasets()
    source, fix = repository, "give a local file instead (text, JSONL, parquet)"
    try:
        if offline:
            from huggingface_hub import snapshot_download

            source = snapshot_download(repository, repo_type="dataset", local_files_only=True)
        loaded = datasets.load_dataset(source, config, data_files=data_files)
    except Exception as error:
        raise _unavailable(repository, error, offline, fix) from error
    names = [name for name in splits if name in loaded] or list(loaded)[:1]
    return _column(loaded[names[0]], column, f"{repository} ({names[0]})")


def read_parquet(path: Path, column: str) -> list[str]:
    """One column of strings of a local parquet file.

    Raises:
        FeatherweightError: unreadable, or no such column.
    """
    return _column(_parquet(path), column, path.name)


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Every row of a local parquet file, by column.

    Raises:
        FeatherweightError: unreadable.
    """
    return list(_parquet(path))


def _parquet(path: Path) -> Any:
    try:
        return _datasets().Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:
        if isinstance(error, FeatherweightError):
            raise
        raise FeatherweightError(f"{path.name} cannot be read", found=error, expected="a parquet file") from error


def _column(dataset: Any, column: str, where: str) -> list[Any]:
    if column not in dataset.column_names:
        raise FeatherweightError(
            f"{where} has no column {column!r}",
            found=", ".join(dataset.column_names),
            expected=column,
            fix="name it: hf:owner/name:config:column",
        )
    return list(dataset[column])


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise FeatherweightError(
            "the package datasets is missing", found="not installed", expected="datasets", fix="pip install featherweight[eval]"
        ) from error
    return datasets


def _unavailable(what: str, error: Exception, offline: bool, fix: str) -> FeatherweightError:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return FeatherweightError(
        f"{what} is not cached, and offline was asked for" if offline else f"{what} could not be loaded from the hub",
        found=f"{type(error).__name__}: {reason[:200]}",
        expected="a cached copy" if offline else "a reachable data set",
        fix="; ".join(part for part in ("run once online" if offline else "", fix) if part),
    )
