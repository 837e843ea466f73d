"""A corpus: text, chats or token ids, with the rule that turns them into windows and the hash of their content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError

Split = Literal["calibration", "evaluation"]
Variant = Literal["standard", "new"]
Rule = Literal["joined", "documents"]

SPLITS = ("calibration", "evaluation")
VARIANTS = ("standard", "new")


@dataclass(frozen=True, eq=False)
class Corpus:
    """One corpus; exactly one of `documents`, `samples` and `chats` is filled.

    Attributes:
        name: a published name, a shipped sample, or the file's own name (never its folder).
        split: "calibration" or "evaluation".
        documents: texts.
        samples: token ids, each `[tokens]` int64.
        chats: conversations in the `messages` form, rendered by the tokenizer's chat template.
        joining: what stands between two documents when they are joined.
        rule: "joined" (one long row) or "documents" (windows never cross a document).
        variant: "standard" (GPTQ, SpQR, QuIP#) or "new" (SparseGPT, Wanda); "standard" where the two agree.
        strict: the rule is a published one: followed to the letter even where documents would repeat.
        maximum_windows: the published number of evaluation windows, None for all.
        note: what was done to the source that a reader of the numbers must know; often empty.
    """

    name: str
    split: Split
    documents: tuple[str, ...] = ()
    samples: tuple[Tensor, ...] = ()
    chats: tuple[tuple[dict[str, Any], ...], ...] = ()
    joining: str = "\n\n"
    rule: Rule = "joined"
    variant: Variant = "standard"
    strict: bool = False
    maximum_windows: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a corpus that holds nothing, or two kinds of content."""
        filled = [kind for kind in ("documents", "samples", "chats") if getattr(self, kind)]
        if len(filled) != 1:
            raise FeatherweightError(
                f"corpus {self.name} must hold one kind of content",
                found=", ".join(filled) or "nothing (an empty source)",
                expected="one of documents, samples, chats",
                fix="check that the source is not empty",
            )
        if self.documents and not any(document.strip() for document in self.documents):
            raise FeatherweightError(f"corpus {self.name} is empty", found="only blank text", expected="text")

    @cached_property
    def text(self) -> str:
        """All documents joined by `joining`."""
        return self.joining.join(self.documents)

    @cached_property
    def sha256(self) -> str:
        """Hash of the content: of the joined text in UTF-8 (for a text file, that file's own sha256), of the chats as
        JSON lines, or of the token ids as little-endian int64, sample by sample, each preceded by its length.
        """
        digest = hashlib.sha256()
        if self.documents:
            digest.update(self.text.encode("utf-8", "surrogatepass"))
        for chat in self.chats:
            digest.update(json.dumps(chat, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
        for sample in self.samples:
            digest.update(sample.numel().to_bytes(8, "little") + tokens_bytes(sample))
        return digest.hexdigest()


def tokens_bytes(tokens: Tensor) -> bytes:
    """Token ids as little-endian int64 bytes, in row-major order."""
    return tokens.detach().to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()


def tokens_sha256(tokens: Tensor) -> str:
    """sha256 of the shape and of `tokens_bytes`; every calibrated or measured number depends on it."""
    return hashlib.sha256(f"{list(tokens.shape)}".encode() + tokens_bytes(tokens)).hexdigest()
