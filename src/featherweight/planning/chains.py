"""Which methods each linear gets: the recipe's steps with its overrides applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from featherweight.errors import FeatherweightError, nearest
from featherweight.methods.base import Method
from featherweight.methods.registry import METHODS, method_from
from featherweight.models.structure import Structure
from featherweight.planning.recipe import Override, Recipe, Step


@dataclass(frozen=True)
class Chains:
    """The methods of everything that may be compressed.

    Attributes:
        linears: chain by linear name; empty where an override skips it.
        embedding, head: one data-free method, or None.
    """

    linears: Mapping[str, tuple[Method, ...]]
    embedding: Method | None = None
    head: Method | None = None

    @classmethod
    def resolve(cls, recipe: Recipe, structure: Structure) -> Chains:
        """Apply the overrides in order.

        Raises:
            FeatherweightError: a glob that matches nothing, an unknown method or setting, a method that needs data for
                the embedding or the head.
        """
        names = [linear.name for block in structure.blocks for linear in structure.linears[block]]
        steps: dict[str, tuple[Step, ...]] = dict.fromkeys(names, recipe.steps)
        for override in recipe.overrides:
            for name in _matched(override, names):
                steps[name] = _overridden(steps[name], override)
        made: dict[str, tuple[Method, ...]] = {}
        linears = {}
        for name, chain in steps.items():
            key = repr(chain)
            if key not in made:
                made[key] = tuple(method_from(step.method, step.settings) for step in chain)
            linears[name] = made[key]
        embedding, head = _data_free(recipe.embedding, "embedding"), _data_free(recipe.head, "head")
        if structure.tied and head is not None and embedding is not None and head != embedding:
            raise FeatherweightError(
                "the head is tied to the embedding, so both share one storage",
                found=f"embedding {embedding}, head {head}",
                expected="the same settings for both",
                fix="write only `embedding:`; it covers the tied head",
            )
        return cls(linears, embedding, head)

    def outside(self, structure: Structure) -> dict[str, tuple[str, str, tuple[Method, ...], str]]:
        """Rows outside the blocks: parameter name -> (module, kind, chain, who shares it)."""
        embedding, head = structure.embedding, structure.head
        if structure.tied:
            method = self.embedding or self.head
            shared = f"shared with the tied head {head}"
            return {f"{embedding}.weight": (str(embedding), "embedding", (method,), shared)} if method else {}
        found: dict[str, tuple[str, str, tuple[Method, ...], str]] = {}
        if self.embedding and embedding:
            found[f"{embedding}.weight"] = (embedding, "embedding", (self.embedding,), "")
        if self.head and head:
            found[f"{head}.weight"] = (head, "head", (self.head,), "")
        return found


def _matched(override: Override, names: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in override.match:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise FeatherweightError(
                f"the pattern {pattern!r} matches no linear",
                found=f"{len(names)} linears in the model",
                expected=f"a glob over full names, nearest: {', '.join(nearest(pattern, names))}",
                fix=f"for example '*.{names[0].rsplit('.', 1)[-1]}'",
            )
        found += hits
    return list(dict.fromkeys(found))


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


def _data_free(step: Step | None, place: str) -> Method | None:
    if step is None:
        return None
    method = method_from(step.method, step.settings)
    if method.requires:
        free = ", ".join(name for name, kind in METHODS.items() if not kind.needs)
        raise FeatherweightError(
            f"the {place} is compressed without data",
            found=f"{step.method}, which needs {', '.join(sorted(method.requires))}",
            expected=f"a method that needs no statistics: {free}",
            fix=f"{place}: {{method: rtn, bits: 8}}",
        )
    return method
