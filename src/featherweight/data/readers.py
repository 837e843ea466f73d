"""Reading local files of text: plain text, JSON lines (also gzipped) and parquet."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from featherweight.errors import FeatherweightError, nearest

DOCUMENT_BREAK = "\n\n\n"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw", ".tokens")
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def suffix_of(path: Path) -> str:
    """The file's suffix in lower case, a trailing `.gz` ignored."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def existing_file(path: Path) -> Path:
    """`path` if it is a file that holds something.

    Raises:
        FeatherweightError: missing (with the nearest names in its folder), a folder, or empty.
    """
    if path.is_dir():
        raise FeatherweightError("expected a file", found=f"{path} is a folder", expected="one text, JSONL or token file")
    if not path.is_file():
        siblings = [child.name for child in path.parent.iterdir() if child.is_file()] if path.parent.is_dir() else []
        near = ", ".join(nearest(path.name, siblings))
        raise FeatherweightError(
            f"no such file: {path}",
            found=f"the folder {path.parent} holds {len(siblings)} files" if path.parent.is_dir() else "no such folder either",
            expected="an existing file",
            fix=f"nearest names there: {near}" if near else "check the path",
        )
    if path.stat().st_size == 0:
        raise FeatherweightError(f"{path.name} is empty", found="0 bytes", expected="text", fix="give a file that holds text")
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (also gzipped), line ends as `\\n`, a byte-order mark dropped.

    Raises:
        FeatherweightError: missing, empty, not gzip, or not UTF-8.
    """
    raw = existing_file(path).read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FeatherweightError(
            f"{path.name} is not UTF-8 text",
            found=f"byte {raw[error.start : error.start + 1].hex()} at offset {error.start}",
            expected="UTF-8",
            fix="convert it (iconv -t utf-8), or give token ids as .npy, .safetensors or .pt",
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise FeatherweightError(f"{path.name} is not a whole gzip file", found=error, expected="gzip data") from error


def read_documents(path: Path) -> tuple[str, ...]:
    """The documents of a text file, apart by two blank lines; joined by `DOCUMENT_BREAK` they are the text again."""
    text = read_text(path)
    if not text.strip():
        raise FeatherweightError(f"{path.name} is empty", found="only blank lines", expected="text")
    return tuple(text.split(DOCUMENT_BREAK))


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file (also gzipped), one at a time, line ends kept as `\\n`.

    Raises:
        FeatherweightError: missing, empty, not gzip, or not UTF-8.
    """
    existing_file(path)
    number = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as stream:
            for line in io.TextIOWrapper(cast(IO[bytes], stream), encoding="utf-8-sig"):
                number += 1
                yield line
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise FeatherweightError(
            f"{path.name} cannot be read",
            found=f"after line {number}: {error}",
            expected="UTF-8 text, gzipped if it ends in .gz",
        ) from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line number, object)` of every line that is not blank.

    Raises:
        FeatherweightError: a line that is not a JSON object, with its number.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FeatherweightError(
                f"{path.name} line {number} is not JSON",
                found=f"{error.msg} at column {error.colno}: {line.strip()[:60]!r}",
                expected='one object per line, {"text": "…"} or {"messages": […]}',
                fix="if the file is one JSON array, write one object per line",
            ) from error
        if not isinstance(row, dict):
            raise FeatherweightError(
                f"{path.name} line {number} is not a JSON object",
                found=type(row).__name__,
                expected='{"text": "…"} or {"messages": […]}',
            )
        yield number, row


def json_rows(path: Path) -> list[Any]:
    """Rows of a file that is one JSON list, or JSON lines.

    Raises:
        FeatherweightError: neither.
    """
    text = read_text(path)
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as problem:
        raise FeatherweightError(f"{path} is no JSON", found=str(problem), expected="JSON lines, or one list") from None


def text_column(row: dict[str, Any], column: str, where: str) -> str:
    """`row[column]`, checked to be a string."""
    value = row.get(column)
    if not isinstance(value, str):
        raise FeatherweightError(
            f"{where} has no text in {column!r}",
            found=f"keys {', '.join(map(str, row)) or 'none'}" if value is None else f"a {type(value).__name__}",
            expected=f"a string under {column!r}",
        )
    return value


def read_rows(path: Path, column: str) -> tuple[str, ...]:
    """The rows of a data set's file: lines of text (line ends kept), `column` of JSON lines, or of parquet.

    Raises:
        FeatherweightError: unknown suffix, missing column, or what the readers above raise.
    """
    suffix = suffix_of(path)
    if suffix in JSON_SUFFIXES:
        rows = [text_column(row, column, f"{path.name} line {number}") for number, row in read_json_lines(path)]
    elif suffix == ".parquet":
        from featherweight.data.hub import read_parquet

        rows = read_parquet(existing_file(path), column)
    elif suffix in TEXT_SUFFIXES or not suffix:
        rows = list(read_lines(path))
    else:
        raise FeatherweightError(
            f"unknown kind of file: {path.name}",
            found=suffix,
            expected=", ".join((*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")),
        )
    if not any(row.strip() for row in rows):
        raise FeatherweightError(f"{path.name} is empty", found=f"{len(rows)} blank rows", expected="text")
    return tuple(rows)


def read_chat_or_text(path: Path) -> tuple[tuple[str, ...], tuple[tuple[dict[str, Any], ...], ...]]:
    """`(documents, chats)` of a JSONL file; one of the two is empty.

    Raises:
        FeatherweightError: a row with neither `text` nor `messages`, or rows of both kinds.
    """
    documents: list[str] = []
    chats: list[tuple[dict[str, Any], ...]] = []
    for number, row in read_json_lines(path):
        where = f"{path.name} line {number}"
        if "messages" in row:
            chats.append(_messages(row["messages"], where))
        else:
            documents.append(text_column(row, "text", where))
        if documents and chats:
            raise FeatherweightError(
                f"{where} mixes text and chats",
                found=f"{len(documents)} rows of text, {len(chats)} of messages",
                expected="one kind per file",
                fix="split the file in two",
            )
    if not documents and not chats:
        raise FeatherweightError(f"{path.name} is empty", found="no rows", expected='{"text": "…"} or {"messages": […]}')
    return tuple(documents), tuple(chats)


def _messages(value: object, where: str) -> tuple[dict[str, Any], ...]:
    whole = (
        isinstance(value, list) and value and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)
    )
    if not whole:
        raise FeatherweightError(
            f"{where} has malformed messages",
            found=repr(value)[:80],
            expected='[{"role": "user", "content": "…"}, …], at least one',
        )
    assert isinstance(value, list)
    return tuple(value)
