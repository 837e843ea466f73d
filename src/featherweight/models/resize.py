"""The config of a model with fewer blocks or other widths, found by trying: no family is listed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

from featherweight.errors import FeatherweightError
from featherweight.models.skeleton import build_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]


def resized_settings(
    config: Any,
    raw: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
    wanted: Shapes,
    what: str,
    *,
    always: Mapping[str, Any] | None = None,
    besides: Mapping[str, int] | None = None,
    accepts: Callable[[PreTrainedModel], bool] = lambda smaller: True,
    fix: Callable[[], str] = lambda: "use the method structured, which keeps the model's shapes",
) -> dict[str, Any]:
    """Which settings make transformers build exactly these parameters.

    One integer setting of the first old size becomes the new one; so does another one for each further size, or none where the
    family has no setting for it. Lists (one entry per block) are not touched. With one size, a setting that is null may stand
    for it too.

    Args:
        config: a transformers config; gives the class and the names of settings.
        raw: what `config.json` holds, and what is to be changed: a setting that it leaves out may follow from others.
        sizes: old and new ones.
        wanted: shapes of all parameters and persistent buffers of the resized model, by name.
        what: for the error.
        always: changes that are settled already.
        besides: settings to try as well, that the family may otherwise derive from those that change.
        accepts: a further test of a skeleton that has these shapes.
        fix: for the error, asked only then.

    Returns:
        Changed settings of the decoder's part of `raw`, `always` included.

    Raises:
        FeatherweightError: no settings do it; the family cannot be resized this way.
    """
    known = changed_config(config, raw, {}).get_text_config(decoder=True).to_dict()
    for candidate in _candidates(known, sizes, besides or {}):
        changes = {**(always or {}), **candidate}
        with _quiet():
            try:
                built = build_skeleton(changed_config(config, raw, changes), fused_experts=True)
            except Exception:  # a setting that only happens to have this value may break the family's own checks
                continue
        if {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()} == dict(wanted) and accepts(built):
            return changes
    shown = " and ".join(dict.fromkeys(f"no setting of {old} that makes it {new}" for old, new in sizes))
    raise FeatherweightError(
        f"this family cannot have another {what}",
        found=f"{type(config).__name__}: {shown}",
        expected="settings from which exactly the shapes that are left follow",
        fix=fix(),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs about settings that are only tried; its level is put back."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def changed_config(config: Any, raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """The config that `config.json` will give when `changes` are written into the decoder's part of it."""
    return type(config).from_dict(changed_raw(raw, changes))


def changed_raw(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` with `changes` in the decoder's part of it."""
    changed = copy.deepcopy(dict(raw))
    changed.get("text_config", changed).update(changes)
    return changed


def lists_per_block(config: Any, blocks: int, kept: list[int]) -> dict[str, Any]:
    """Settings that hold one entry per block (kinds of layers), with those of the kept blocks."""
    settings = config.get_text_config(decoder=True).to_dict()
    return {
        name: [value[index] for index in kept]
        for name, value in settings.items()
        if isinstance(value, list) and len(value) == blocks
    }


def _candidates(
    known: Mapping[str, Any], sizes: Sequence[tuple[int, int]], besides: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Changes to try, the smallest first."""
    named = [[name for name, value in known.items() if type(value) is int and value == old] for old, _ in sizes]
    options: list[list[str | None]] = [list(named[0])]
    options += [[None, *names] for names in named[1:]]
    if len(sizes) == 1:
        options[0] += [name for name, value in known.items() if value is None]
    for names in product(*options):
        chosen = [name for name in names if name is not None]
        if len(set(chosen)) == len(chosen):
            changes = {name: new for name, (_, new) in zip(names, sizes, strict=True) if name is not None}
            yield changes
            if besides:
                yield {**besides, **changes}
