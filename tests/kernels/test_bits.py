"""A stream of bits: exact both ways, at every width and length."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.kernels.bits import pack, pack_across, packed_width, unpack, unpack_across


def naive_pack(codes: list[int], bits: int) -> list[int]:
    stream = [(code >> k) & 1 for code in codes for k in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(bit << k for k, bit in enumerate(stream[start : start + 8])) for start in range(0, len(stream), 8)]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 31, 64, 101])
def test_round_trip_and_textbook_stream(bits, count):
    generator = torch.Generator().manual_seed(bits * 1000 + count)
    codes = torch.randint(0, 2**bits, (3, 2, count), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 2, packed_width(count, bits)) and packed.dtype == torch.uint8
    assert packed[1, 1].tolist() == naive_pack(codes[1, 1].tolist(), bits)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_works_on_meta_and_when_empty():
    assert pack(torch.empty(4, 10, dtype=torch.uint8, device="meta"), 3).shape == (4, 4)
    assert unpack(torch.empty(4, 4, dtype=torch.uint8, device="meta"), 3, 10).shape == (4, 10)
    assert unpack(pack(torch.empty(0, 10, dtype=torch.uint8), 3), 3, 10).shape == (0, 10)


def test_errors():
    with pytest.raises(FeatherweightError, match="9 bits"):
        pack(torch.zeros(3, dtype=torch.uint8), 9)
    with pytest.raises(FeatherweightError, match="uint8"):
        pack(torch.zeros(3), 4)
    with pytest.raises(FeatherweightError, match="expected: 2 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, 4)


@pytest.mark.parametrize(
    ("bits", "count"), [(2, 128), (2, 64), (4, 64), (4, 128), (3, 128), (3, 256), (3, 64), (5, 48), (8, 128)]
)
def test_codes_across_words_come_back_and_lie_where_it_says(bits, count):
    codes = torch.randint(0, 2**bits, (3, 2, count), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack_across(codes, bits)
    assert packed.shape == (3, 2, packed_width(count, bits)) and torch.equal(unpack_across(packed, bits, count), codes)
    if bits not in (2, 3, 4) or count < 128:
        return
    plane = 2 if bits == 3 else bits
    words = packed[0, 0].contiguous().view(torch.int32).tolist()
    width = count * plane // 32
    for index, code in enumerate(codes[0, 0].tolist()):
        word, field = index % width, index // width
        found = words[word] >> field * plane & (1 << plane) - 1
        if bits == 3:
            found |= (words[width + word // 2] >> 8 * (field // 4) + 4 * (word % 2) + field % 4 & 1) << 2
        assert found == code
