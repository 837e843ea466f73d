"""The most bytes that are alive at once beside the weights, from a trace of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featherweight.planning.cache import CachePlan
from featherweight.planning.memory import Trace
from featherweight.planning.synthetic import Behaviour


@dataclass(frozen=True)
class Product:
    """One product with a compressed weight.

    Attributes:
        module: whose output the trace knows.
        weights, features: of the weight: how many, and inputs plus outputs.
        kind: "linear", "head" (of the last position only) or "embedding" (decodes the rows it looks up).
        behaves: its chain's.
    """

    module: str
    weights: int
    features: int
    kind: str
    behaves: Behaviour

    def bytes(self, tokens: int, sequences: int) -> float:
        """Temporaries for so many tokens of so many sequences."""
        if self.kind == "embedding":
            return self.behaves.per_weight * tokens * self.features
        passing = sequences if self.kind == "head" else tokens
        return self.behaves.per_weight * self.weights + self.behaves.per_feature * passing * self.features


def alive(trace: Trace, products: Sequence[Product], cache: CachePlan | None) -> int:
    """The most bytes alive at once beside the weights."""
    most = []
    reading, stepping = _saved(trace, cache)
    for tokens, whole, held, saved in (
        (trace.batch * trace.context, trace.prefill, trace.reading, reading),
        (trace.batch, trace.decode, trace.stepping, stepping),
    ):
        peaks = [held[product.module] + product.bytes(tokens, trace.batch) for product in products if product.module in held]
        most.append(max([float(whole), *peaks]) - saved)
    return int(max(most))


def _saved(trace: Trace, cache: CachePlan | None) -> tuple[int, int]:
    """Bytes by which a compressed cache is smaller than the traced one, while reading and in a step: one layer's tokens are exact,
    or made so, for its attention."""
    if cache is None:
        return 0, 0
    layers = len(cache.shapes)
    saved = (trace.cache - trace.batch * cache.bytes_of(trace.context)) * (layers - 1) // layers
    return saved if cache.settings.prefill == "chunked" else 0, saved
