"""The integer codec against the textbook, number by number."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.kv_cache.integer import Integer


def textbook(values, bits):
    """One group as its paper writes it, in Python's own numbers."""
    low, high, levels = min(values), max(values), 2**bits - 1
    scale = (high - low) / levels
    return [low + scale * min(levels, max(0, round((value - low) / scale))) for value in values]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("axis", "head_dim"), [("token", 64), ("token", 80), ("channel", 64)])
def test_round_trip_is_the_textbook_one(bits, axis, head_dim):
    codec = Integer(bits=bits, axis=axis)
    exact = torch.randn(1, 1, 64, head_dim, generator=torch.Generator().manual_seed(bits))
    decoded = codec.decode(codec.encode(exact, {}), {}, torch.float32)[0, 0]
    expected = torch.empty_like(decoded)
    for start in range(0, 64 if axis == "channel" else head_dim, 32):
        part = slice(start, start + 32)
        for other in range(head_dim if axis == "channel" else 64):
            where = (part, other) if axis == "channel" else (other, part)
            expected[where] = torch.tensor(textbook(exact[0, 0][where].tolist(), bits))
    assert torch.allclose(decoded, expected, atol=1e-5)


def test_codes_lie_in_the_bytes_lowest_bit_first():
    exact = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]).view(1, 1, 1, 8)
    codes = Integer(bits=2, group_size=8).encode(exact, {})
    assert codes["codes"].flatten().tolist() == [0b11100100, 0b00011011]
    assert codes["scale"].item() == 1 and codes["minimum"].item() == 0


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_values_come_back_exactly(axis, dtype):
    exact = torch.full((1, 2, 32, 64), 0.3, dtype=dtype)
    codec = Integer(axis=axis)
    assert torch.equal(codec.decode(codec.encode(exact, {}), {}, dtype), exact)


def test_a_channel_with_outliers_costs_the_others_nothing():
    exact = torch.randn(1, 1, 128, 64, generator=torch.Generator().manual_seed(0))
    exact[..., 5] += 50.0
    error = {axis: (Integer(axis=axis).decode(Integer(axis=axis).encode(exact, {}), {}, torch.float32) - exact).norm()
             for axis in ("token", "channel")}  # fmt: skip
    assert error["channel"] < 0.3 * error["token"]


def test_windows_slide_along_tokens_and_fall_due_along_channels():
    keys, values = Integer(axis="channel", window=128), Integer(axis="token", window=128)
    assert [keys.settled(total) for total in (0, 1, 127, 128, 129, 255, 256)] == [0, 0, 0, 128, 128, 128, 256]
    assert [values.settled(total) for total in (0, 1, 127, 128, 129, 255, 256)] == [0, 0, 0, 0, 1, 127, 128]


def test_bits_are_all_that_is_stored():
    assert Integer(bits=2).stored_bits(128, torch.bfloat16) == 3.0
    assert Integer(bits=4, axis="channel").stored_bits(64, torch.float16) == 5.0
    assert Integer(bits=2).stored_bits(80, torch.float16) == 2 + 3 * 32 / 80  # 32 + 32 + 16


def test_a_head_that_does_not_fill_bytes_is_refused():
    with pytest.raises(FeatherweightError, match="multiple of 8"):
        Integer().check(20)
