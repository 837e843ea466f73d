"""From a corpus to token ids."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from featherweight.data.corpus import Corpus
from featherweight.errors import FeatherweightError

#: Texts of at most so many characters are kept encoded, so many for each tokenizer; shorter ones are encoded anew.
KEPT_LENGTHS, KEPT = range(1 << 10, 1 << 23), 512

_kept: WeakKeyDictionary[Any, dict[tuple[bytes, bool], Tensor]] = WeakKeyDictionary()


def encode(tokenizer: Any, text: str, *, special: bool = True) -> Tensor:
    """Token ids of a text, `[tokens]` int64, never truncated; `special` adds BOS or EOS as the tokenizer is set to.

    A text that this tokenizer encoded before is not encoded again: a comparison of ten recipes reads one corpus ten times.
    """
    if len(text) not in KEPT_LENGTHS:
        return _encoded(tokenizer, text, special)
    kept = _kept.setdefault(tokenizer, {})
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), special
    if key not in kept:
        if len(kept) == KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = _encoded(tokenizer, text, special).to(torch.int32)
    return kept[key].to(torch.int64)


def _encoded(tokenizer: Any, text: str, special: bool) -> Tensor:
    ids = tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def document_count(corpus: Corpus) -> int:
    """How many documents, chats or samples the corpus holds."""
    return len(corpus.documents) or len(corpus.chats) or len(corpus.samples)


def encode_document(corpus: Corpus, tokenizer: Any, index: int) -> Tensor:
    """Token ids of one document, chat or sample, `[tokens]` int64."""
    if corpus.chats:
        return encode(tokenizer, _rendered(corpus, tokenizer, index), special=False)
    if corpus.samples:
        check_vocabulary(corpus.samples[index], tokenizer, corpus.name)
        return corpus.samples[index]
    return encode(tokenizer, corpus.documents[index])


def may_exceed(corpus: Corpus, index: int, length: int) -> bool:
    """Whether a document can have more than `length` tokens: a token is at least a byte, a few special ones aside."""
    return not corpus.documents or len(corpus.documents[index].encode("utf-8", "surrogatepass")) + 8 > length


def encode_joined(corpus: Corpus, tokenizer: Any) -> Tensor:
    """The whole corpus as one row, `[tokens]` int64: joined first, tokenised once."""
    if corpus.samples:
        row = torch.cat([sample.reshape(-1) for sample in corpus.samples])
        check_vocabulary(row, tokenizer, corpus.name)
        return row
    if corpus.chats:
        rendered = corpus.joining.join(_rendered(corpus, tokenizer, index) for index in range(len(corpus.chats)))
        return encode(tokenizer, rendered, special=False)
    return encode(tokenizer, corpus.text)


def check_vocabulary(tokens: Tensor, tokenizer: Any, name: str) -> None:
    """Token ids must be the tokenizer's.

    Raises:
        FeatherweightError: an id below 0 or beyond the vocabulary.
    """
    size = len(tokenizer)
    low, high = int(tokens.min()) if tokens.numel() else 0, int(tokens.max()) if tokens.numel() else 0
    if low < 0 or high >= size:
        raise FeatherweightError(
            f"{name} holds token ids of another tokenizer",
            found=f"id {low if low < 0 else high}",
            expected=f"ids from 0 to {size - 1}",
            fix="tokenise the text with this model's tokenizer, or give the text itself",
        )


def bos_rule(corpus: Corpus, tokenizer: Any, rule: str) -> str:
    """Where BOS stands: "none", "first window only", "where a crop starts its document", or "as given" for ids and chats."""
    if corpus.samples:
        return "as given"
    if corpus.chats:
        return "by the chat template"
    bos = getattr(tokenizer, "bos_token_id", None)
    first = encode(tokenizer, "a")[:1].tolist()
    if bos is None or first != [bos]:
        return "none"
    return "first window only" if rule == "joined" else "where a crop starts its document"


def _rendered(corpus: Corpus, tokenizer: Any, index: int) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise FeatherweightError(
            f"{corpus.name} holds chats, but the tokenizer has no chat template",
            found="no chat_template",
            expected="the tokenizer of a chat model",
            fix='use its instruct model, or give plain documents: {"text": "…"}',
        )
    return str(tokenizer.apply_chat_template(list(corpus.chats[index]), tokenize=False))
