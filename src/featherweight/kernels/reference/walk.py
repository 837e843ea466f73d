"""Blocks of columns, fitted, selected and walked in plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from featherweight.kernels.reference.sweep_block import sweep_block
from featherweight.kernels.split import halves
from featherweight.kernels.two_level import TwoLevelFitting
from featherweight.kernels.walking import Dropping, WalkBlock, Walking


def open_walk(walking: Walking, dropping: Dropping | None) -> WalkBlock:
    """What walks a block `first … last` of at most 128 columns; no block cuts a group.

    A group is fitted on its weights as they stand: on what the walk would make of it if nothing was rounded, where nothing or
    something of it is dropped (`Dropping.fitted`). "least" selects before a block's first column, on all of its weights as
    they stand; "n of m" before every m columns.
    """
    return partial(_walk_block, walking, dropping)


def _walk_block(walking: Walking, dropping: Dropping | None, first: int, last: int) -> Tensor:
    block = slice(first, last)
    error = torch.empty_like(walking.target[block])
    if dropping is not None and dropping.how == "least":
        dropping.dropped[block] = _select(dropping, _standing(walking, block, None), walking.importance[block])
    size = walking.size if walking.group_index is None else last - first
    for begin in range(first, last, size):
        group = slice(begin, min(begin + size, last))
        _correct(walking, first, group, error)
        if walking.fitting is not None and walking.group_index is None:
            number, values = begin // walking.size, _fitted_on(walking, dropping, group)
            scale, zero, *second = walking.fitting.apply(values, walking.importance[group])
            walking.scale[number], walking.zero[number] = scale, zero
            for found in second:
                assert walking.second_level is not None
                walking.second_level.of(slice(number, number + 1)).take(found)
        step = dropping.of if dropping is not None and dropping.how == "n of m" else group.stop - begin
        for start in range(begin, group.stop, step):
            part = slice(start, start + step)
            if start > begin:
                walking.target[part].addmm_(walking.feedback[begin:start, part].T, error[begin - first : start - first])
            _decide(walking, dropping, part, error[start - first : part.stop - first])
    high, low = halves(error)
    return torch.cat((high, high, low))


def _correct(walking: Walking, first: int, part: slice, error: Tensor) -> None:
    walking.target[part].addmm_(walking.feedback[first : part.start, part].T, error[: part.start - first])


def _decide(walking: Walking, dropping: Dropping | None, part: slice, error: Tensor) -> None:
    if dropping is not None and dropping.how == "n of m":
        dropping.dropped[part] = _select(dropping, _standing(walking, part, None), walking.importance[part])
    index = torch.full((part.stop - part.start,), part.start // walking.size, dtype=torch.int32, device=error.device)
    index = index if walking.group_index is None else walking.group_index[part]
    real = isinstance(walking.fitting, TwoLevelFitting)
    sweep_block(
        walking.target[part], walking.original[part], walking.feedback[part, part], walking.importance[part], walking.scale,
        walking.zero, index, None if dropping is None else dropping.dropped[part],
        0 if walking.fitting is None else walking.fitting.largest_code, walking.codes[part], error, walking.loss,
        walking.dtype if walking.fitting is None else "real" if real else "integer",
        None if walking.keeping is None else walking.keeping.of(part),
    )  # fmt: skip


def _fitted_on(walking: Walking, dropping: Dropping | None, group: slice) -> Tensor:
    """`[rows, columns]`."""
    standing = _standing(walking, group, None)
    if dropping is None or dropping.fitted == "all":
        return standing.T.contiguous()
    dropped = dropping.dropped[group]
    if dropping.how == "n of m":
        dropped = _select(dropping, standing, walking.importance[group])
    if dropping.fitted == "kept":
        return standing.masked_fill(dropped, 0.0).T.contiguous()
    return _standing(walking, group, dropped).T.contiguous()


def _select(dropping: Dropping, values: Tensor, importance: Tensor) -> Tensor:
    assert dropping.apply is not None
    step = dropping.of or len(values)
    parts = zip(values.split(step), importance.split(step), strict=True)
    return torch.cat([dropping.apply(part, weigh) for part, weigh in parts])


def _standing(walking: Walking, part: slice, dropped: Tensor | None) -> Tensor:
    """What a walk without rounding makes of some columns, `[columns, rows]`; 0 where `dropped`."""
    values, original = walking.target[part].clone(), walking.original[part]
    nothing, index = torch.zeros_like(values[:1]), torch.zeros(len(values), dtype=torch.int32, device=values.device)
    sweep_block(
        values, original, walking.feedback[part, part], walking.importance[part], nothing + 1, nothing, index, dropped, 0,
        walking.codes[part], torch.empty_like(values), nothing[0].clone(), torch.float32,
    )  # fmt: skip
    return values
