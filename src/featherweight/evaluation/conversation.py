"""Turns of a conversation over one growing cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch

from featherweight.decoding.sampling import Sampling
from featherweight.evaluation.forward import context_of
from featherweight.evaluation.generate import Decoder, Tally, check_request, end_tokens, generate_tokens
from featherweight.kv_cache import new_cache

_USER, _ASSISTANT = "User: ", "Assistant:"
_STOP = "\n" + _USER.rstrip()


class Conversation:
    """A model's side of a conversation; each turn reads only what the cache does not hold yet.

    With a chat template the whole conversation is written by it at every turn, and the cache is cropped to what stayed the same.
    Without one the turns are plain text, `User: ...` and `Assistant: ...`, and a reply ends before the next `User:`.

    Attributes:
        turns: what was said, `{"role", "content"}`.
        tally: times, and the cache.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, sampling: Sampling | None = None, seed: int = 0, system: str = ""
    ) -> None:
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling or Sampling()
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._system = system
        self.tally = Tally()
        self.reset()

    def reset(self) -> None:
        """Begin anew, with an empty cache; the tally goes on."""
        self.turns = [{"role": "system", "content": self._system}] if self._system else []
        self.tally.cache = new_cache(self._model)
        self._tokens: list[int] = []  # of the conversation so far
        self._read: list[int] = []  # the cache holds the first of these

    def reply(self, text: str, max_new_tokens: int = 256) -> Iterator[str]:
        """The answer to `text`, in pieces; together with the question it becomes part of the conversation.

        Raises:
            FeatherweightError: the conversation has outgrown the model's context; it is then as before the turn.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        ids = self._written(turns)
        room = (context_of(self._model) or sys.maxsize) - len(ids)
        count = min(max_new_tokens, max(1, room))
        check_request(self._model, len(ids), count)
        fresh = ids[self._crop(ids) :]
        self.turns, self._read, pieces = turns, list(ids), []
        try:
            for piece in self._pieces(fresh, count):
                pieces.append(piece)
                yield piece
        except (Exception, KeyboardInterrupt):  # the layers of its cache may have come to different lengths
            self.tally.cache = new_cache(self._model)
            raise
        finally:
            reply = "".join(pieces)
            self.turns.append({"role": "assistant", "content": reply.strip()})
            self._tokens = [*ids, *self._spelt(reply, self._read[len(ids) :])]

    def _pieces(self, fresh: list[int], count: int) -> Iterator[str]:
        ends, decoder = end_tokens(self._model, self._tokenizer), Decoder(self._tokenizer, self._read)
        tokens = generate_tokens(self._model, fresh, count, self._sampling, self._generator, ends, self.tally)

        def decoded() -> Iterator[str]:
            for token in tokens:
                self._read.append(token)
                yield decoder.add(token)
            yield decoder.rest()

        return _until(_STOP, decoded()) if self._plain else decoded()

    def _spelt(self, reply: str, made: list[int]) -> list[int]:
        """The tokens that were made, without those after the end of `reply`."""
        while made and not reply.startswith(self._tokenizer.decode(made)):
            made = made[:-1]
        rest = reply[len(self._tokenizer.decode(made)) :] if made else reply
        return made + (self._tokenizer(rest, add_special_tokens=False, verbose=False)["input_ids"] if rest else [])

    @property
    def _plain(self) -> bool:
        return getattr(self._tokenizer, "chat_template", None) is None

    def _written(self, turns: list[dict[str, str]]) -> list[int]:
        """The conversation as tokens, up to where the model is to speak."""
        if not self._plain:
            told = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
            return list(told["input_ids"])
        begun = f"{self._system}\n" if self._system and not self._tokens else "\n" if self._tokens else ""
        text = f"{begun}{_USER}{turns[-1]['content']}\n{_ASSISTANT}"
        return [*self._tokens, *self._tokenizer(text, add_special_tokens=not self._tokens, verbose=False)["input_ids"]]

    def _crop(self, ids: list[int]) -> int:
        """Leave in the cache what `ids` begins with, but for the last token, which has to be read for what follows it.

        Returns:
            How many tokens that is.
        """
        held = 0 if self.tally.cache is None else int(self.tally.cache.get_seq_length())
        pairs = zip(self._read[:held], ids[:-1], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if same < held:
            self.tally.cache.crop(same - held)
        return same


def _until(stop: str, pieces: Iterator[str]) -> Iterator[str]:
    """The pieces up to `stop`; what may be its beginning is held back."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = next((size for size in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-size:])), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held
