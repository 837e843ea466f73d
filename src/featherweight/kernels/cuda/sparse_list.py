"""A list of weights beside a chunked weight, in steps of one weight of each of a tile's rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked

#: Inputs of a group; chunks of a segment, whose steps lie together.
GROUP, SEGMENT = 16, 16

#: Inputs that a record can name, padding included.
MOST_PLACES = 2**15 - CHUNK

#: Value of records that fill up a step, -0, at a segment's first place; an entry of -0 becomes 0.
FILLING = -(2**15)


@dataclass(frozen=True)
class SparseParts:
    """Entries to be added: `rows`, `columns` int64, `values` float16, `[entries]` each."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def encode_list(sparse: SparseParts, gather: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Steps before every tile and segment, `[tiles · segments + 1]`, and their records, `[steps, 4, 4]`; int32 both.

    Lane t of four has rows 2 t and 2 t + 1, then 2 t + 8 and 2 t + 9: a word of two float16 values, a word of twice their places.
    """
    device = gather.device
    segments = -(-len(gather) // (SEGMENT * CHUNK))
    place = torch.empty(int(gather.max()) + 1, dtype=torch.int64, device=device)
    place[gather[gather >= 0]] = places_of(len(gather), device)[gather >= 0]
    at = place[sparse.columns]
    owner = (sparse.rows // ROWS * segments + at // (SEGMENT * CHUNK)) * ROWS + sparse.rows % ROWS
    order = torch.argsort(owner * len(gather) + at)
    owner, at = owner[order], at[order]
    counts = torch.bincount(owner, minlength=tiles * segments * ROWS)
    rank = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
    lengths = counts.view(-1, ROWS).amax(1)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    first = torch.arange(segments, device=device).mul(SEGMENT * CHUNK * 2).repeat(tiles).repeat_interleave(lengths)
    records = torch.empty(
        len(first), 4, 2, 2, 2, dtype=torch.int16, device=device
    )  # step, lane, eight rows, value or place, row
    records[:, :, :, 0] = FILLING
    records[:, :, :, 1] = _words(first)[:, None, None, None]
    value = sparse.values[order].view(torch.int16)
    slot = (starts[owner // ROWS] + rank, owner % 8 // 2, owner % ROWS // 8)
    records[*slot, 0, owner % 2] = value.where(value != FILLING, 0)
    records[*slot, 1, owner % 2] = _words(2 * at)
    return starts.to(torch.int32), records.view(torch.int32).view(-1, 4, 4)


def places_of(count: int, device: torch.device) -> Tensor:
    """Place in shared memory of so many inputs, whole chunks: lane t reads eight of group t + 8 h, then of t + 4 + 8 h."""
    chunk = torch.arange(CHUNK, device=device).view(2, 2, 4, 2, 8).permute(0, 3, 1, 2, 4).flatten().argsort()
    return (torch.arange(0, count, CHUNK, device=device)[:, None] + chunk).flatten()


def decode_list(chunked: Chunked, gather: Tensor) -> SparseParts:
    """The entries of a list, row by row."""
    assert chunked.records is not None and chunked.list_starts is not None
    device, tiles = gather.device, chunked.chunks.shape[0]
    records = chunked.records.view(torch.int16).view(-1, 4, 2, 2, 2)
    values, places = records[:, :, :, 0], records[:, :, :, 1].long() & 0xFFFF
    used = values != FILLING
    step, lane, half, odd = used.nonzero(as_tuple=True)
    owner = torch.arange(len(chunked.list_starts) - 1, device=device).repeat_interleave(chunked.list_starts.diff().long())[step]
    rows = owner // ((len(chunked.list_starts) - 1) // tiles) * ROWS + half * 8 + lane * 2 + odd
    columns = gather[places_of(len(gather), device).argsort()[places[used] // 2]]
    order = torch.argsort(rows * chunked.inputs + columns)
    return SparseParts(rows[order], columns[order], values[used].view(torch.float16)[order])


def _words(values: Tensor) -> Tensor:
    """Numbers below 2^16 as int16 of the same bits."""
    return values.where(values < 2**15, values - 2**16).to(torch.int16)
