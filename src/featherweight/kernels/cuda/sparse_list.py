"""A list of weights beside a chunked weight, chunk by chunk: in steps of the matrix unit, eight of a tile's upper rows and eight of the lower."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda.stream import CHUNK, ROWS, Chunked

#: Inputs of a group; weights of a step, of either eight rows.
GROUP, EACH = 16, 8


@dataclass(frozen=True)
class SparseParts:
    """Entries to be added: `rows`, `columns` int64, `values` float16, `[entries]` each."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def encode_list(sparse: SparseParts, gather: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Steps before every chunk of every tile, `[tiles · chunks + 1]`, and their records, `[steps, 4, 4]`; int32 both.

    Of each of four lanes two words hold four values, those of two of the upper rows first, two what they belong to, 16 bits each: twice
    the place of the input in bits 1 to 8, and one bit for the row, 9 to 15 and then 0. None says that there is no weight.
    """
    device, chunks = gather.device, len(gather) // CHUNK
    found = torch.empty(int(gather.max()) + 1, dtype=torch.int64, device=device)
    found[gather[gather >= 0]] = (gather >= 0).nonzero()[:, 0]
    at = found[sparse.columns]
    owner = ((sparse.rows // ROWS * chunks + at // CHUNK) * 2 + sparse.rows % ROWS // 8) * CHUNK + at % CHUNK
    order = torch.argsort(owner * 8 + sparse.rows % 8)
    owner, row, at = owner[order] // CHUNK, sparse.rows[order] % 8, at[order] % CHUNK
    counts = torch.bincount(owner, minlength=tiles * chunks * 2)
    rank = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
    starts = torch.nn.functional.pad((-(-counts // EACH)).view(-1, 2).amax(1).cumsum(0), (1, 0))
    records = torch.zeros(int(starts[-1]), 4, 2, 2, 2, dtype=torch.int16, device=device)  # step, lane, word of, half, odd
    step, slot = starts[owner // 2] + rank // EACH, rank % EACH
    told = places_of(device)[at] * 2 | torch.where(row < 7, 512 << row, 1)
    records[step, slot // 2, 0, owner % 2, slot % 2] = sparse.values[order].view(torch.int16)
    records[step, slot // 2, 1, owner % 2, slot % 2] = told.where(told < 2**15, told - 2**16).to(torch.int16)
    return starts.to(torch.int32), records.view(torch.int32).view(-1, 4, 4)


def places_of(device: torch.device) -> Tensor:
    """Place in shared memory of the inputs of a chunk, `[256]`: lane t reads eight of group t + 8 h, then of t + 4 + 8 h."""
    return torch.arange(CHUNK, device=device).view(2, 2, 4, 2, 8).permute(0, 3, 1, 2, 4).flatten().argsort()


def decode_list(chunked: Chunked, gather: Tensor) -> SparseParts:
    """The entries of a list, row by row."""
    assert chunked.records is not None and chunked.list_starts is not None
    device, chunks = gather.device, len(gather) // CHUNK
    records = chunked.records.view(torch.int16).view(-1, 4, 2, 2, 2)
    told = records[:, :, 1].long() & 0xFFFF
    used = told & 0xFE01 != 0
    step, _, half, _ = used.nonzero(as_tuple=True)
    owner = torch.arange(len(chunked.list_starts) - 1, device=device).repeat_interleave(chunked.list_starts.diff().long())[step]
    told, values = told[used], records[:, :, 0][used].view(torch.float16)
    bits = told[:, None] >> torch.arange(9, 16, device=device) & 1
    row = torch.where(told & 1 == 1, 7, bits.argmax(1))
    columns = gather[owner % chunks * CHUNK + places_of(device).argsort()[told >> 1 & 0xFF]]
    rows = owner // chunks * ROWS + half * 8 + row
    order = torch.argsort(rows * chunked.inputs + columns)
    return SparseParts(rows[order], columns[order], values[order])
