"""One token for every sequence: what runs between the products, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.decoding.products import Norm, Product
from featherweight.decoding.reading import Decoder
from featherweight.kernels import registry
from featherweight.kernels.cuda.around import Scaled
from featherweight.kernels.decoding import Chosen


@dataclass
class Stream:
    """The hidden states on their way through the blocks.

    Attributes:
        hidden: `[batch, features]`.
        delta: what is still to be added to them.
        scaled: the same, on the way through the next norm.
    """

    hidden: Tensor
    delta: Tensor | None = None
    scaled: Scaled | None = None


class Step:
    """A decode step on buffers that never move: caches, the chosen token, the position.

    A product that can takes the norm before it, the activation after it, or the sum with the residual along; the others have
    small kernels beside them, one for sum and norm together.

    Args:
        decoder: what to compute.
        batch: sequences, all equally long.
        length: tokens that the cache holds of each.

    Attributes:
        keys, values: of every block, `[batch, key heads, length, dim]`.
        chosen: token, position and history.
        logits: of the last step, `[batch, vocabulary]`.
    """

    def __init__(self, decoder: Decoder, batch: int, length: int) -> None:
        tensor = next(iter([*decoder.embedding.parameters(), *decoder.embedding.buffers()]))
        device, heads = tensor.device, decoder.blocks[0].heads
        self.decoder, self.batch, self.length, self.device = decoder, batch, length, device
        shape = (batch, heads.keys, length, heads.dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=decoder.dtype, device=device) for _ in decoder.blocks] for _ in "kv"
        )
        self.chosen = Chosen.make(batch, length, decoder.vocabulary, device)
        self.logits = torch.zeros(batch, decoder.vocabulary, dtype=decoder.dtype, device=device)
        places = torch.arange(length, device=device)[None]
        cosine, sine = decoder.rotation(torch.zeros(1, 1, 1, dtype=decoder.dtype, device=device), places)
        self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()
        signature = {"dtype": str(decoder.dtype).removeprefix("torch.")}
        self._kernels = {op: registry.choose(op, signature, device) for op in
("embed", "add_norm", "gate", "choose_token")}  # fmt: skip
        self._attention: dict[int, tuple[Any, Any]] = {}

    def run(self, reach: int) -> None:
        """Read the chosen token, choose the next and move on by one; the position is below `reach` tokens."""
        self.logits = self.forward(reach)
        self.choose()

    def choose(self) -> None:
        """Choose from the logits, and move on by one."""
        self._kernels["choose_token"](self.logits, self.chosen)

    def forward(self, reach: int) -> Tensor:
        """Logits of the token at the position, whose key and value enter the cache."""
        attend, scratch = self._attend(reach)
        decoder, stream = self.decoder, Stream(self._embedded())
        followers = [*((block.attention_norm, block.qkv) for block in decoder.blocks[1:]), (decoder.norm, decoder.head)]
        for block, keys, values, follower in zip(decoder.blocks, self.keys, self.values, followers, strict=True):
            qkv = self._after_norm(stream, block.attention_norm, block.qkv)
            mixed = qkv.new_empty(self.batch, block.heads.keys * block.heads.group * block.heads.dim)
            attend(qkv, self._cosine, self._sine, keys, values, self.chosen.position, block.heads, scratch, mixed)
            _add(stream, block.output, mixed, block.mlp_norm, block.gate_up)
            both = self._after_norm(stream, block.mlp_norm, block.gate_up, block.activation)
            _add(stream, block.down, both, *follower)
        return self._after_norm(stream, decoder.norm, decoder.head)

    def _attend(self, reach: int) -> tuple[Any, Any]:
        """The kernel of attention for caches of `reach` tokens, and its scratch, which all blocks share."""
        if reach not in self._attention:
            heads = self.decoder.blocks[0].heads
            signature = {"dtype": str(self.decoder.dtype).removeprefix("torch."), "dim": heads.dim, "reach": reach}
            attend, make = (registry.choose(op, signature, self.device) for op in ("attend", "attend_scratch"))
            self._attention[reach] = attend, make(heads, self.batch, reach, self.device)
        return self._attention[reach]

    def _embedded(self) -> Tensor:
        decoder, token = self.decoder, self.chosen.token
        if decoder.table is None or type(decoder.embedding) is not nn.Embedding:
            return decoder.embedding(token[:, None])[:, 0].contiguous()
        out = decoder.table.new_empty(self.batch, decoder.hidden)
        return self._kernels["embed"](decoder.table, token, 1.0, out)

    def _after_norm(self, stream: Stream, norm: Norm, product: Product, activation: str | None = None) -> Tensor:
        """`product(norm(hidden + delta))`, activated; the sum stays in the stream."""
        if product.norms and stream.delta is None:
            return product(stream.hidden, norm=norm, activation=activation)
        x: Tensor | Scaled
        if product.scales and stream.scaled is not None:
            x = stream.scaled
        else:
            x = torch.empty_like(stream.hidden)
            self._kernels["add_norm"](stream.hidden, stream.delta, norm.gain, norm.eps, x)
            stream.delta = None
        if product.gates or activation is None:
            return product(x, activation=activation)
        both = product(x)
        return self._kernels["gate"](both, activation, both.new_empty(self.batch, product.outputs // 2))


def _add(stream: Stream, product: Product, x: Tensor, norm: Norm, follower: Product) -> None:
    """`hidden += product(x)`, or what remains to be added; scaled where the follower, behind its norm, can use it."""
    stream.scaled = None
    if product.adds:
        stream.scaled = product.add(x, stream.hidden, norm if follower.scales else None)
    else:
        stream.delta = product(x)
