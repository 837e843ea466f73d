"""WikiText-2, C4 and Penn Treebank, read and joined as the published tables did.

| corpus | calibration | evaluation, standard | evaluation, new |
|---|---|---|---|
| wikitext2 | train, joined by a blank line (new: by a space) | test, joined by a blank line | the same |
| ptb | train, joined by a blank line (new: by a space) | validation, joined by a blank line | test, joined by a space |
| c4 | train shard 0 of 1024, crops of long documents | validation shard 0 of 8, 256 crops of long documents, seed 0 \
| its first 1100 documents joined by spaces, the first 256 windows |

"standard" is GPTQ, SpQR, QuIP# and CALDERA; "new" is SparseGPT, Wanda, RIA, BESA, PQP and JSQ. Source: the loaders of
those projects. The data sets `ptb_text_only` (a script) and `allenai--c4` (a renamed configuration) no longer load by
those names; the same files are read by their paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from featherweight.data.corpus import Corpus, Rule, Split, Variant
from featherweight.data.hub import hub_file
from featherweight.data.readers import read_rows, suffix_of

C4_WINDOWS = 256
C4_DOCUMENTS_NEW = 1100
HEADING = re.compile(r"^ (= )+\S.* (= ?)+$")


@dataclass(frozen=True)
class Published:
    """Where a published corpus lies on the hub.

    Attributes:
        repository: `owner/name` of the data set.
        column: the column that holds the text.
        files: the repository's file by split: train, validation, test.
        revision: branch that holds them, None for the main one.
    """

    repository: str
    column: str
    files: dict[str, str]
    revision: str | None = None


PUBLISHED = {
    "wikitext2": Published(
        "Salesforce/wikitext",
        "text",
        {split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")},
    ),
    "c4": Published(
        "allenai/c4",
        "text",
        {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "ptb": Published(
        "ptb-text-only/ptb_text_only",
        "sentence",
        {split: f"penn_treebank/{split}/0000.parquet" for split in ("train", "validation", "test")},
        revision="refs/convert/parquet",
    ),
}


def load_published(name: str, *, split: Split, variant: Variant, data_files: str | None, offline: bool) -> Corpus:
    """One of the published corpora, from a local file or from the hub (or its cache).

    Args:
        name: "wikitext2", "c4" or "ptb".
        split: which use; decides the data set's own split, unless `data_files` names the file.
        variant: "standard" or "new", see the table above.
        data_files: a local file (wikitext2, ptb: one row per line, or parquet; c4: JSON lines, also gzipped), or a
            file's path inside the hub's repository; None for the published file.
        offline: use local and cached files only.

    Raises:
        FeatherweightError: the file cannot be had or read.
    """
    published = PUBLISHED[name]
    local = (
        Path(data_files)
        if data_files is not None and (Path(data_files).exists() or not _inside(published, data_files))
        else None
    )
    if local is None:
        filename = data_files or published.files[_hub_split(name, split, variant)]
        fix = f"give a local copy: {name}:PATH (or data_files=PATH)"
        local = hub_file(published.repository, filename, revision=published.revision, offline=offline, fix=fix)
    rows = read_rows(local, _column(published, local))
    rows, note = _as_published(name, rows)
    joining, rule = _rule(name, split, variant)
    if name == "c4" and split == "evaluation" and variant == "new":
        rows = rows[:C4_DOCUMENTS_NEW]
    return Corpus(
        name,
        split,
        documents=rows,
        joining=joining,
        rule=rule,
        variant=variant if _differs(name, split) else "standard",
        strict=True,
        maximum_windows=C4_WINDOWS if name == "c4" and split == "evaluation" else None,
        note=note,
    )


def _inside(published: Published, data_files: str) -> bool:
    """Whether `data_files` names a file beside the published ones on the hub."""
    return data_files.split("/")[0] in {filename.split("/")[0] for filename in published.files.values()}


def _column(published: Published, path: Path) -> str:
    return published.column if suffix_of(path) == ".parquet" else "text"


def _hub_split(name: str, split: Split, variant: Variant) -> str:
    if split == "calibration":
        return "train"
    return "test" if name == "wikitext2" or (name == "ptb" and variant == "new") else "validation"


def _differs(name: str, split: Split) -> bool:
    return (name, split) not in (("wikitext2", "evaluation"), ("c4", "calibration"))


def _rule(name: str, split: Split, variant: Variant) -> tuple[str, Rule]:
    if name == "c4":
        return " ", "documents" if split == "calibration" or variant == "standard" else "joined"
    spaced = variant == "new" and _differs(name, split)
    return " " if spaced else "\n\n", "joined"


def _as_published(name: str, rows: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Rows as the hub's data set holds them: wikitext2 keeps line ends and empties blank rows, ptb strips both."""
    if name == "ptb":
        return tuple(stripped for row in rows if (stripped := row.strip())), ""
    if name == "wikitext2":
        rows = tuple(row if row.strip() else "" for row in rows)
        return (rows, "") if "" in rows else _with_blank_rows(rows)
    return rows, ""


def _with_blank_rows(rows: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Rows of a file whose blank lines were squeezed out, with those around each heading put back."""
    restored: list[str] = []
    for row in rows:
        restored += ["", row, ""] if HEADING.match(row.rstrip("\n")) else [row]
    note = f"blank rows were squeezed out of the source; {len(restored) - len(rows)} restored around headings"
    return tuple(restored), note if len(restored) > len(rows) else ""
