"""One token for every sequence: what runs between the products, and in which order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featherweight.decoding.coded_cache import CodedCache, coded_kernel
from featherweight.decoding.products import Norm, Product
from featherweight.decoding.reading import Decoder
from featherweight.kernels import registry
from featherweight.kernels.decoding import Chosen, Heads


class Step:
    """A decode step on buffers that never move: caches, the chosen token, the position.

    A product that can takes the norm before it, the activation after it, or the sum with the residual along; the others have
    small kernels beside them, one for sum and norm together.

    Args:
        decoder: what to compute.
        batch: sequences, all equally long.
        length: tokens that the cache holds of each.
        coded: where keys and values are in code; None for a static cache of exact ones.

    Attributes:
        keys, values: of every block, `[batch, key heads, length, dim]`; none where they are in code.
        chosen: token, position and history.
        logits: of the last step, `[batch, vocabulary]`.
        cuts: whether draws are cut by top-k, and by top-p.
    """

    def __init__(self, decoder: Decoder, batch: int, length: int, coded: CodedCache | None = None) -> None:
        tensor = next(iter([*decoder.embedding.parameters(), *decoder.embedding.buffers()]))
        device, heads = tensor.device, decoder.blocks[0].heads
        self.decoder, self.batch, self.length, self.device, self._coded = decoder, batch, length, device, coded
        shape = (batch, heads.keys, length, heads.dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=decoder.dtype, device=device) for _ in decoder.blocks if coded is None] for _ in "kv"
        )
        self.chosen = Chosen.make(batch, length, decoder.vocabulary, device)
        self.cuts = (False, False)
        self.logits = torch.zeros(batch, decoder.vocabulary, dtype=decoder.dtype, device=device)
        places = torch.arange(length, device=device)[None]
        cosine, sine = decoder.rotation(torch.zeros(1, 1, 1, dtype=decoder.dtype, device=device), places)
        self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()
        signature = {"dtype": str(decoder.dtype).removeprefix("torch.")}
        parts = ("embed", "add_norm", "gate", "choose_token")
        self._kernels = {op: registry.choose(op, signature, device) for op in parts}
        self._attention: dict[int, tuple[Any, Any]] = {}

    def run(self, reach: int) -> None:
        """Read the chosen token, choose the next and move on by one; the position is below `reach` tokens."""
        self.logits = self.forward(reach)
        self.choose()

    def choose(self) -> None:
        """Choose from the logits, and move on by one."""
        self._kernels["choose_token"](self.logits, self.chosen, self.cuts)

    def forward(self, reach: int) -> Tensor:
        """Logits of the token at the position, whose key and value enter the cache."""
        decoder, hidden = self.decoder, self._embedded()
        delta: Tensor | None = None
        for number, block in enumerate(decoder.blocks):
            qkv = self._after_norm(hidden, delta, block.attention_norm, block.qkv)
            mixed = self._attended(number, qkv, block.heads, reach)
            delta = _added(block.output, mixed, hidden)
            both = self._after_norm(hidden, delta, block.mlp_norm, block.gate_up, block.activation)
            delta = _added(block.down, both, hidden)
        return self._after_norm(hidden, delta, decoder.norm, decoder.head)

    def _attended(self, number: int, qkv: Tensor, heads: Heads, reach: int) -> Tensor:
        """What the heads of block `number` make of its queries, after its key and value were added."""
        place = self.chosen.position
        if self._coded is not None:
            layer = self._coded.layers[number]
            attend = coded_kernel(layer, self.decoder.dtype, heads.dim, self.device)
            made: Tensor = attend(qkv, self._cosine, self._sine, layer, place, heads, reach)
            return made
        attend, scratch = self._attend(reach)
        mixed = qkv.new_empty(self.batch, heads.keys * heads.group * heads.dim)
        attend(qkv, self._cosine, self._sine, self.keys[number], self.values[number], place, heads, scratch, mixed)
        return mixed

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

    def _after_norm(
        self, hidden: Tensor, delta: Tensor | None, norm: Norm, product: Product, activation: str | None = None
    ) -> Tensor:
        """`product(norm(hidden + delta))`, activated; the sum stays in `hidden`."""
        if product.norms and delta is None:
            return product(hidden, norm=norm, activation=activation)
        x = torch.empty_like(hidden)
        self._kernels["add_norm"](hidden, delta, norm.gain, norm.eps, x)
        if product.gates or activation is None:
            return product(x, activation=activation)
        both = product(x)
        return self._kernels["gate"](both, activation, both.new_empty(self.batch, product.outputs // 2))


def _added(product: Product, x: Tensor, hidden: Tensor) -> Tensor | None:
    """`hidden += product(x)`; or, where the product cannot add, what remains to be added."""
    if product.adds:
        product.add(x, hidden)
        return None
    return product(x)
