"""Which methods each linear gets: the recipe's steps by their scopes, with its overrides applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from featherweight.errors import FeatherweightError, nearest
from featherweight.methods.base import Method
from featherweight.methods.registry import METHODS, method_from
from featherweight.models.structure import Structure
from featherweight.planning.recipe import Override, Recipe, ScopedStep, Step

#: Scopes that have a name.
SCOPES = ("all", "decoder", "head")


#: Why a linear can be left alone: it had steps and an override took them, or it never had any.
ALONE = ("left alone by an override", "in the scope of no step")


@dataclass(frozen=True)
class Chains:
    """The methods of everything that may be compressed.

    Attributes:
        linears: chain by linear name; empty where a linear is left alone. The head is among them if it has a chain.
        embedding: one data-free method for the embedding, and for a head that is tied to it; or None.
        reasons: why a linear is left alone, by name.
    """

    linears: Mapping[str, tuple[Method, ...]]
    embedding: Method | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def prepare(self) -> bool:
        """Whether any method maps inputs before it compresses."""
        return any(method.prepares for chain in self.linears.values() for method in chain)

    @classmethod
    def resolve(cls, recipe: Recipe, structure: Structure) -> Chains:
        """Apply scopes, then overrides in order.

        Raises:
            FeatherweightError: a scope or glob that matches nothing, an unknown method or setting, a method that needs data
                for the embedding.
        """
        decoder = [linear.name for block in structure.blocks for linear in structure.linears[block]]
        scoped = _scoped(recipe.steps, decoder, structure.head)
        shared = _shared(recipe, structure, scoped)
        if recipe.head is not None and structure.head is not None and not shared:
            scoped[structure.head] = (recipe.head, *scoped[structure.head])
        steps = {name: chain for name, chain in scoped.items() if chain or name != structure.head}
        for override in recipe.overrides:
            for pattern in override.match:
                for name in _matching(pattern, list(steps), "the pattern", "a glob over full names"):
                    steps[name] = _overridden(steps[name], override)
        made: dict[str, tuple[Method, ...]] = {}
        linears = {}
        for name, chain in steps.items():
            key = repr(chain)
            if key not in made:
                made[key] = tuple(method_from(step.method, step.settings) for step in chain)
            linears[name] = made[key]
        empty = (name for name, chain in steps.items() if not chain)
        reasons = {name: ALONE[0] if scoped[name] else ALONE[1] for name in empty}
        return cls(linears, _data_free(recipe.embedding or (recipe.head if shared else None)), reasons)


def _scoped(steps: Sequence[ScopedStep], decoder: list[str], head: str | None) -> dict[str, tuple[Step, ...]]:
    """The steps whose scope holds each linear, and the head."""
    heads = [] if head is None else [head]
    named = {"all": decoder + heads, "decoder": decoder, "head": heads}
    scoped: dict[str, tuple[Step, ...]] = dict.fromkeys(decoder + heads, ())
    expected = f"{', '.join(SCOPES)}, or a glob over full names"
    for step in steps:
        patterns = (step.scope,) if isinstance(step.scope, str) else step.scope
        held = {
            name
            for pattern in patterns
            for name in named.get(pattern) or _matching(pattern, decoder + heads, "the scope", expected)
        }
        for name in held:
            scoped[name] = (*scoped[name], step)
    return scoped


def _shared(recipe: Recipe, structure: Structure, scoped: Mapping[str, tuple[Step, ...]]) -> bool:
    """Whether the head is stored as the embedding: it is tied, and no step has it in its scope.

    Raises:
        FeatherweightError: other settings for the head than for the embedding.
    """
    if not structure.tied or scoped.get(str(structure.head)):
        return False
    if recipe.head is not None and recipe.embedding is not None and recipe.head != recipe.embedding:
        raise FeatherweightError(
            "the head is tied to the embedding, so both share one storage",
            found=f"embedding {recipe.embedding}, head {recipe.head}",
            expected="the same settings for both",
            fix="write only `embedding:`; it covers the tied head. A step with `scope: head` unties it",
        )
    return True


def _matching(pattern: str, names: list[str], what: str, expected: str) -> list[str]:
    hits = [name for name in names if fnmatchcase(name, pattern)]
    if not hits:
        words = nearest(pattern, [*SCOPES, *names] if what == "the scope" else names)
        raise FeatherweightError(
            f"{what} {pattern!r} matches no linear",
            found=f"{len(names)} linears in the model",
            expected=f"{expected}, nearest: {', '.join(words)}",
            fix=f"for example '*.{names[0].rsplit('.', 1)[-1]}'",
        )
    return hits


def _overridden(steps: tuple[Step, ...], override: Override) -> tuple[Step, ...]:
    if override.skip:
        return ()
    steps = override.steps if override.steps is not None else steps
    if not steps:
        return ()
    unused = set(override.settings)
    changed = []
    for step in steps:
        known = {field.name for field in fields(METHODS[step.method])} if step.method in METHODS else set()
        fitting = {name: value for name, value in override.settings.items() if name in known}
        unused -= fitting.keys()
        changed.append(step.model_copy(update=fitting) if fitting else step)
    if unused:
        available = sorted({field.name for step in steps if step.method in METHODS for field in fields(METHODS[step.method])})
        raise FeatherweightError(
            "an override sets what no step has",
            found=", ".join(sorted(unused)),
            expected=", ".join(available),
            fix=f"did you mean {nearest(min(unused), available)[0]}?" if available else "",
        )
    return tuple(changed)


def _data_free(step: Step | None) -> Method | None:
    if step is None:
        return None
    method = method_from(step.method, step.settings)
    if method.requires:
        free = ", ".join(name for name, kind in METHODS.items() if not kind.needs)
        raise FeatherweightError(
            "the embedding, and a head that is tied to it, are compressed without data",
            found=f"{step.method}, which needs {', '.join(sorted(method.requires))}",
            expected=f"a method that needs no statistics: {free}",
            fix="embedding: {method: rtn, bits: 8}; a step with `scope: head` unties the head, and may need data",
        )
    if method.prepares:
        raise FeatherweightError(
            f"{step.method} maps the inputs of linears, and an embedding has none",
            found=f"settings {step.settings}",
            expected="a method that leaves inputs as they are",
            fix="embedding: {method: rtn, bits: 8}",
        )
    return method
