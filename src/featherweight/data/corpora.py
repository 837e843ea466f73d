"""`load_corpus`: every text the package calibrates on or measures with comes through here."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, cast

from featherweight.data.corpus import SPLITS, VARIANTS, Corpus, Split, Variant
from featherweight.data.hub import hub_rows
from featherweight.data.published import PUBLISHED, load_published
from featherweight.data.readers import DOCUMENT_BREAK, JSON_SUFFIXES, read_chat_or_text, read_documents, suffix_of
from featherweight.data.token_files import TOKEN_SUFFIXES, read_samples
from featherweight.errors import FeatherweightError, nearest

SHIPPED = ("calibration", "heldout")
ALIASES = ("sample", "demo")
NAMES = (*PUBLISHED, *SHIPPED, *ALIASES)
FORMS = f"{', '.join(NAMES)}, a file (.txt, .jsonl, .npy, .safetensors, .pt), NAME:FILE, hf:owner/name[:config][:column]"


def load_corpus(
    name_or_path: str,
    *,
    split: Split,
    offline: bool = False,
    variant: Variant = "standard",
    data_files: str | None = None,
) -> Corpus:
    """The corpus behind a name or a path.

    Args:
        name_or_path: one of
            "wikitext2", "c4", "ptb": the published corpora, from the hub; `wikitext2:PATH`, `c4:PATH`, `ptb:PATH` apply
            the same rules to a local file (one row per line; C4: JSON lines, also gzipped);
            "calibration", "heldout": the samples that ship with the package ("sample" and "demo": the one for `split`);
            a text file: documents apart by two blank lines, measured as it stands;
            a JSONL file: `text` or `messages` (rendered by the tokenizer's chat template);
            a token file: `.npy`, `.safetensors`, `.pt` (see `read_samples`);
            `hf:owner/name[:config][:column]`: any data set of the hub, column "text" unless named.
        split: "calibration" or "evaluation"; decides the data set's split and the joining rule.
        offline: never reach for the network; what is neither local nor cached is an error.
        variant: "standard" or "new" rules of the published corpora (see `featherweight.data.published`).
        data_files: the file to read in place of a hub name's own.

    Raises:
        FeatherweightError: unknown name (with the nearest ones), missing, empty or malformed file, not to be had offline.
    """
    _check(split, SPLITS, "split")
    _check(variant, VARIANTS, "variant")
    prefix, colon, rest = name_or_path.partition(":")
    if prefix == "hf" and colon:
        return _hub_corpus(rest, split, offline, data_files)
    if prefix in PUBLISHED:
        if colon and not rest:
            raise FeatherweightError(f"{name_or_path!r} names no file", found=name_or_path, expected=f"{prefix}:PATH")
        if colon and not Path(rest).exists():
            raise FeatherweightError(f"no such file: {rest}", found=name_or_path, expected=f"{prefix}:PATH of an existing file")
        return load_published(prefix, split=split, variant=variant, data_files=rest or data_files, offline=offline)
    if data_files is not None:
        raise FeatherweightError(
            "data_files goes with a hub name", found=name_or_path, expected=f"{', '.join(PUBLISHED)} or hf:owner/name"
        )
    if name_or_path in (*SHIPPED, *ALIASES):
        return _shipped_corpus(name_or_path, split)
    return _file_corpus(name_or_path, split)


def _check(value: str, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise FeatherweightError(f"unknown {what} {value!r}", found=value, expected=" or ".join(allowed))


def _shipped_corpus(name: str, split: Split) -> Corpus:
    if name in ALIASES:
        name = "calibration" if split == "calibration" else "heldout"
    with resources.as_file(resources.files("featherweight") / "assets" / f"{name}.txt") as path:
        return _text_corpus(name, read_documents(path), split, DOCUMENT_BREAK)


def _text_corpus(name: str, documents: tuple[str, ...], split: Split, joining: str) -> Corpus:
    rule = "documents" if split == "calibration" and len(documents) > 1 else "joined"
    return Corpus(name, split, documents=documents, joining=joining, rule=cast(Any, rule))


def _file_corpus(name_or_path: str, split: Split) -> Corpus:
    path = Path(name_or_path)
    suffix = suffix_of(path)
    if not path.exists() and not suffix and len(path.parts) == 1:
        raise FeatherweightError(
            f"unknown corpus {name_or_path!r}",
            found=name_or_path,
            expected=FORMS,
            fix=f"nearest names: {', '.join(nearest(name_or_path, NAMES))}",
        )
    if path.suffix.lower() in TOKEN_SUFFIXES:
        samples = read_samples(path)
        rule = "documents" if split == "calibration" and len(samples) > 1 else "joined"
        return Corpus(path.name, split, samples=samples, joining="", rule=cast(Any, rule))
    if suffix in JSON_SUFFIXES:
        documents, chats = read_chat_or_text(path)
        if chats:
            return Corpus(path.name, split, chats=chats, joining="", rule="documents" if split == "calibration" else "joined")
        return _text_corpus(path.name, documents, split, "\n\n")
    return _text_corpus(path.name, read_documents(path), split, DOCUMENT_BREAK)


def _hub_corpus(address: str, split: Split, offline: bool, data_files: str | None) -> Corpus:
    repository, *rest = address.split(":")
    if repository.count("/") != 1 or not all(repository.split("/")) or len(rest) > 2:
        raise FeatherweightError(
            f"malformed data set name {address!r}", found=address, expected="hf:owner/name[:config][:column]"
        )
    config, column = (rest[0] or None if rest else None), (rest[1] if len(rest) == 2 else "text")
    order = ("train",) if split == "calibration" else ("test", "validation")
    rows = hub_rows(repository, config, order, data_files=data_files, column=column, offline=offline)
    rule = cast(Any, "documents" if split == "calibration" else "joined")
    name = f"hf:{address}"
    if rows and isinstance(rows[0], list):
        return Corpus(name, split, chats=tuple(tuple(row) for row in rows), joining="", rule=rule, strict=True)
    return Corpus(name, split, documents=tuple(str(row) for row in rows), rule=rule, strict=True)
