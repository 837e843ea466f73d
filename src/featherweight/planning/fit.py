"""Which recipes let a model run in so much memory: weights, key-value cache, work of a forward pass, process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Method
from featherweight.models.axes import find_axes
from featherweight.models.described import DescribedWeights
from featherweight.models.shards import model_shards
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.models.structure import Structure, find_structure
from featherweight.models.weights import Weights, open_weights
from featherweight.planning.chains import ALONE, Chains
from featherweight.planning.estimate import PROCESS_BYTES
from featherweight.planning.layout import own_head, plan_rows, storages_of
from featherweight.planning.memory import Trace, Tracer
from featherweight.planning.recipe import Recipe, load_recipe, shipped_recipes
from featherweight.planning.rows import Row, Totals
from featherweight.planning.synthetic import Behaviour, behaviour

#: What a process holds beside the model: Python with torch on a CPU; the driver's context and cuBLAS's workspace on a GPU.
PROCESS = {"cpu": PROCESS_BYTES, "cuda": 600 * 10**6}
DENSE = "dense"
_SHORTEST = 64  # tokens; below, a largest context is not told


@dataclass(frozen=True)
class Need:
    """The memory of one recipe's model, in bytes.

    Attributes:
        recipe: its name, or "dense".
        error: relative output error on the made-up layer of `behaviour`; for the order, not for the model.
        bits: per compressed weight, all stored bits.
        weights: all stored tensors as loaded; a bound where `at_most`.
        at_most: whether the recipe's bytes are a bound.
        cache: keys and values of all sequences.
        work: the most that reading or a decode step takes beside weights and cache.
        process: see `PROCESS`.
        limit: what there is.
        largest_context: tokens up to which it fits, at most the model's positions; 0 if not even 64 do.
    """

    recipe: str
    error: float
    bits: float
    weights: int
    at_most: bool
    cache: int
    work: int
    process: int
    limit: int
    largest_context: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.work + self.process

    @property
    def fits(self) -> bool:
        """Whether that is within the limit."""
        return self.total <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "total": self.total, "left": self.limit - self.total, "fits": self.fits}


@dataclass(frozen=True)
class Shapes:
    """A model without values.

    Attributes:
        source: where its config is.
        structure, weights: as in a plan; the weights are described by the config where there is no checkpoint.
        dtype: of activations, and of parameters that are left alone.
        tracer: of its forward pass.
        skeleton: the model without weights.
        known: behaviour of the chains that were looked at.
    """

    source: ModelSource
    structure: Structure
    weights: Weights
    dtype: torch.dtype
    tracer: Tracer
    skeleton: Any
    known: dict[str, Behaviour] = field(default_factory=dict)

    @classmethod
    def of(cls, source: ModelSource, batch: int) -> Shapes:
        """From config.json, and the headers of a checkpoint if there is one.

        Raises:
            FeatherweightError: what `build_skeleton`, `find_structure` and `open_weights` raise.
        """
        skeleton = build_skeleton(source.config())
        structure = find_structure(skeleton)
        described = not _is_whole(source)
        weights = DescribedWeights(source.folder, skeleton) if described else open_weights(source.folder, skeleton)
        return cls(source, structure, weights, skeleton.dtype, Tracer(skeleton, batch), skeleton)

    def rows(self, recipe: Recipe | None) -> tuple[tuple[Row, ...], Chains]:
        """The plan's rows, and the chains behind them; without a recipe nothing is compressed."""
        if recipe is None:
            linears = {linear.name: () for block in self.structure.blocks for linear in self.structure.linears[block]}
            chains = Chains(linears)
        else:
            chains = Chains.resolve(recipe, self.structure)
        head = own_head(self.structure, chains, self.weights)
        axes = find_axes(self.skeleton, self.structure) if chains.prepare else {}  # no producers: no map is folded
        storages = storages_of(self.structure, axes, chains, self.weights, head)
        return tuple(plan_rows(self.structure, chains, self.weights, head, storages)), chains

    def behaviour(self, chain: tuple[Method, ...]) -> Behaviour:
        """Of one chain, looked at once."""
        if repr(chain) not in self.known:
            self.known[repr(chain)] = behaviour(chain, self.dtype)
        return self.known[repr(chain)]


def fit(
    source: ModelSource,
    recipes: Sequence[str],
    limit: int,
    *,
    context: int,
    batch: int = 1,
    device: str = "cuda",
    changes: Mapping[str, Any] | None = None,
) -> tuple[list[Need], dict[str, str]]:
    """What every recipe's model would take, the smallest expected error first, the dense model before all.

    The forward pass is traced on shapes alone, with attention as fused kernels do it, logits of the last position only, and each
    compressed weight decoded for its product, as the plain kernels do.

    Args:
        source: a model, or a folder with its config.json.
        recipes: shipped names or YAML files; none for all that are shipped.
        limit: bytes that there are.
        context, batch: tokens of a sequence, and sequences at once.
        device: "cuda" or "cpu", for what the process itself takes.
        changes: dotted settings to replace in every recipe.

    Returns:
        One need per recipe, and the reasons of those that do not suit the model.

    Raises:
        FeatherweightError: more tokens than the model has positions, an unknown recipe, or a model whose memory shapes do not tell.
    """
    positions = source.max_length()
    if context > positions:
        raise FeatherweightError(
            "the context is longer than the model reads", found=f"{context} tokens", expected=f"at most {positions}",
            fix=f"--context {positions}",
        )  # fmt: skip
    loaded = {name: load_recipe(name).with_changes(dict(changes or {})) for name in recipes or shipped_recipes()}
    shapes = Shapes.of(source, batch)
    process = PROCESS["cpu" if device == "cpu" else "cuda"]
    needs, refused = [_need(shapes, DENSE, None, limit, context, process)], {}
    for name, recipe in loaded.items():
        try:
            needs.append(_need(shapes, name, recipe, limit, context, process))
        except FeatherweightError as problem:
            if len(loaded) == 1:
                raise
            refused[name] = str(problem).splitlines()[0]
    return sorted(needs, key=lambda need: (need.error, need.weights)), refused


def require_any(needs: Sequence[Need], context: int, batch: int) -> None:
    """Raise FeatherweightError if nothing fits: with the smallest, and what to change."""
    if any(need.fits for need in needs):
        return
    least = min(needs, key=lambda need: need.total)
    longest = max(need.largest_context for need in needs)
    if longest:
        fix = f"--context {longest} fits with {next(need.recipe for need in needs if need.largest_context == longest)}"
    elif batch > 1 and least.weights + least.process < least.limit:
        fix = f"fewer sequences: --batch {batch // 2}"
    else:
        fix = "a harsher recipe, a smaller model, or more memory: not even 64 tokens of context fit"
    raise FeatherweightError(
        f"no recipe fits with {batch} sequences of {context} tokens",
        found=f"the smallest, {least.recipe}: {_words(least)}",
        expected=f"at most {least.limit / 1e9:.3g} GB",
        fix=fix,
    )


def _is_whole(source: ModelSource) -> bool:
    """Whether the folder holds every shard."""
    try:
        return bool(model_shards(source.folder))
    except FeatherweightError:
        return False


def _words(need: Need) -> str:
    parts = {"weights": need.weights, "cache": need.cache, "work": need.work, "process": need.process}
    return f"{need.total / 1e9:.3g} GB, of which " + ", ".join(f"{name} {size / 1e9:.3g}" for name, size in parts.items())


def _need(shapes: Shapes, name: str, recipe: Recipe | None, limit: int, context: int, process: int) -> Need:
    rows, chains = shapes.rows(recipe)
    products = _products(rows, chains, shapes)
    weights = sum(row.predicted_bytes if row.chain else row.weights * shapes.dtype.itemsize for row in rows)
    trace = shapes.tracer.at(context)
    error = _error(rows, products)
    totals = Totals.of(rows, 0)
    bits = totals.linear_bits if any(row.chain for row in rows) else 8 * shapes.dtype.itemsize
    left = limit - weights - process
    return Need(
        name, error, bits, weights, any(row.at_most for row in rows) or chains.prepare, trace.cache, _alive(trace, products) - trace.cache,
        process, limit, _largest_context(shapes, products, left),
    )  # fmt: skip


@dataclass(frozen=True)
class _Product:
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


def _products(rows: Sequence[Row], chains: Chains, shapes: Shapes) -> list[_Product]:
    found = []
    structure = shapes.structure
    for row in rows:
        if not row.chain:
            continue
        kind, sizes = row.kind, row.shape
        chain = (chains.embedding,) if kind == "embedding" else chains.linears[row.module]
        behaves = shapes.behaviour(tuple(method for method in chain if method))
        if kind == "embedding" and structure.tied and structure.head and structure.head not in chains.linears:
            found.append(_Product(structure.head, row.weights, sum(sizes), "head", behaves))
        found.append(_Product(row.module, row.weights, sizes[-1] if kind == "embedding" else sum(sizes), kind, behaves))
    return found


def _error(rows: Sequence[Row], products: Sequence[_Product]) -> float:
    """Mean over the compressed linears' weights; 0 for nothing compressed."""
    linears = [product for product in products if product.kind == "linear"]
    left = sum(row.weights for row in rows if not row.chain and row.reason in ALONE)
    count = sum(product.weights for product in linears) + left
    return sum(product.behaves.error * product.weights for product in linears) / count if count else 0.0


def _alive(trace: Trace, products: Sequence[_Product]) -> int:
    """The most bytes alive at once beside the weights."""
    most = float(max(trace.prefill, trace.decode))
    for tokens, alive in ((trace.batch * trace.context, trace.reading), (trace.batch, trace.stepping)):
        for product in products:
            if product.module in alive:
                most = max(most, alive[product.module] + product.bytes(tokens, trace.batch))
    return int(most)


def _largest_context(shapes: Shapes, products: Sequence[_Product], left: int) -> int:
    """Tokens of each sequence that `left` bytes carry: traced at some lengths, straight lines between them, which is exact where
    memory is linear in the context, and cautious where a mask makes it grow faster."""
    positions = shapes.source.max_length()
    lengths = [_SHORTEST * 4**power for power in range(16) if _SHORTEST * 4**power < positions] + [positions]
    before: tuple[int, int] | None = None
    for length in lengths:
        alive = _alive(shapes.tracer.at(length), products)
        if alive > left:
            return 0 if before is None else before[0] + (length - before[0]) * (left - before[1]) // (alive - before[1])
        before = (length, alive)
    return positions
