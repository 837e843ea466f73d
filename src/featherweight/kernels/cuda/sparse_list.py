"""A list of weights beside a chunked weight: to be added, 32 at a time, by the lanes that hold their rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked

#: Inputs of a group and of a block; chunks of a segment, whose records lie together.
GROUP, BLOCK, SEGMENT = 16, 64, 16

#: Inputs that a record can name, padding included.
MOST_PLACES = 2**15 - CHUNK

#: Value of records that fill up the list, -0, at a segment's first place, for the upper row; an entry of -0 becomes 0.
FILLING = 0x8000

#: Bit of a record for the lower row.
LOWER = 0x8000


@dataclass(frozen=True)
class SparseParts:
    """Entries to be added: `rows`, `columns` int64, `values` float16, `[entries]` each."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def encode_list(sparse: SparseParts, gather: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Rows of records before every tile and segment, `[tiles · segments + 1]`, and the records, `[rows, 32]`; int32 both.

    A record is the value's float16 in its upper half, then one bit for the upper or lower row of a lane's two, then the place. Of a
    segment the upper rows of all lanes come first.
    """
    device = gather.device
    segments = -(-len(gather) // (SEGMENT * CHUNK))
    place = torch.empty(int(gather.max()) + 1, dtype=torch.int64, device=device)
    place[gather[gather >= 0]] = (gather >= 0).nonzero()[:, 0]
    at = place[sparse.columns]
    # segment of a tile, upper or lower, row of eight
    owner = ((sparse.rows // ROWS * segments + at // (SEGMENT * CHUNK)) * 2 + sparse.rows % ROWS // 8) * 8 + sparse.rows % 8
    order = torch.argsort(owner * len(gather) + at)
    owner, at = owner[order], at[order]
    counts = torch.bincount(owner, minlength=tiles * segments * 16)
    rank = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
    lengths = (-(-counts // 4)).view(-1, 8).amax(1)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    first = torch.arange(segments, device=device).mul(SEGMENT * CHUNK)[:, None] | torch.tensor([0, LOWER], device=device)
    records = first.flatten().repeat(tiles).repeat_interleave(lengths)[:, None].repeat(1, 32) | FILLING << 16
    value = sparse.values[order].view(torch.int16).long() & 0xFFFF
    value = value.where(value != FILLING, 0)
    records[starts[owner // 8] + rank // 4, owner % 8 * 4 + rank % 4] = (
        places_of(len(gather), device)[at] | owner // 8 % 2 * LOWER | value << 16
    )
    starts = starts[::2]
    return starts.to(torch.int32), records.where(records < 2**31, records - 2**32).to(torch.int32)


def places_of(count: int, device: torch.device) -> Tensor:
    """Place in shared memory of so many inputs: lane t reads four consecutive ones of either of two groups."""
    each = torch.arange(count, device=device)
    within = each % BLOCK
    group, of_group = within // GROUP, within % GROUP
    return each - within + group // 2 * 32 + of_group // 4 * 8 + group % 2 * 4 + of_group % 4


def decode_list(chunked: Chunked, gather: Tensor) -> SparseParts:
    """The entries of a list, row by row."""
    assert chunked.records is not None and chunked.list_starts is not None
    tiles = chunked.chunks.shape[0]
    segments = (len(chunked.list_starts) - 1) // tiles
    records = chunked.records.long() & 0xFFFFFFFF
    owner = torch.arange(tiles * segments, device=records.device).repeat_interleave(chunked.list_starts.diff().long())[:, None]
    filling = owner % segments * (SEGMENT * CHUNK) | FILLING << 16
    rows = owner // segments * ROWS + torch.arange(32, device=records.device) // 4 + (records >> 15 & 1) * 8
    used = records & ~LOWER != filling
    order = places_of(len(gather), gather.device).argsort()
    rows, columns, values = rows[used], gather[order[records[used] & 0x7FFF]], (records[used] >> 16).to(torch.int32)
    order = torch.argsort(rows * chunked.inputs + columns)
    halves = values.where(values < 2**15, values - 2**16).to(torch.int16).view(torch.float16)
    return SparseParts(rows[order], columns[order], halves[order])
