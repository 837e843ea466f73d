"""What every cache codec promises: the layout it names, tokens coded by their own group alone, every dtype."""

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import make_codec
from featherweight.kv_cache.registry import CODECS

SETTINGS = [
    {"codec": "exact"},
    {"codec": "integer", "bits": 2, "axis": "token"},
    {"codec": "integer", "bits": 3, "axis": "token", "group_size": 24},
    {"codec": "integer", "bits": 4, "axis": "channel"},
    {"codec": "integer", "bits": 8, "axis": "channel", "group_size": 16, "window": 64},
    {"codec": "qjl"},
    {"codec": "qjl", "sketch": 64, "outliers": 0, "projection": "gaussian"},
    {"codec": "qjl", "sketch": 128, "outlier_sketch": 32, "outliers": 3, "constant": "gaussian"},
    {"codec": "rotated"},
    {"codec": "rotated", "bits": 2, "group_size": 32},
    {"codec": "rotated", "bits": 4, "group_size": 16, "balance": True, "window": 32},
    {"codec": "rotated", "bits": 2, "lattice": True, "group_size": 32, "balance": True},
]
NAMES = ["-".join(str(value) for value in settings.values()) for settings in SETTINGS]
TOKENS = 96


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def setup(settings, head_dim):
    codec = make_codec(settings)
    codec.check(head_dim)
    return codec, codec.constants(head_dim, torch.Generator().manual_seed(3))


def test_every_codec_is_tried_here():
    assert {settings["codec"] for settings in SETTINGS} == set(CODECS)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
def test_codes_are_as_the_layout_says_and_decode_to_their_shape(settings, head_dim, dtype):
    codec, constants = setup(settings, head_dim)
    exact = draw(2, 3, TOKENS, head_dim, dtype=dtype)
    codes = codec.encode(exact, constants)
    layout = codec.layout(head_dim, dtype)
    assert list(codes) == list(layout)
    for name, (tokens, shape, kind) in layout.items():
        assert codes[name].shape == (2, 3, TOKENS // tokens, *shape) and codes[name].dtype == kind
        assert TOKENS % tokens == 0 and codec.group % tokens == 0
    stored = sum(8 * tensor.numel() * tensor.itemsize for tensor in codes.values())
    assert codec.stored_bits(head_dim, dtype) == pytest.approx(stored / exact.numel())
    for wanted in (dtype, torch.float32):
        decoded = codec.decode(codes, constants, wanted)
        assert decoded.shape == exact.shape and decoded.dtype == wanted and decoded.isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_a_group_is_coded_by_itself(settings):
    codec, constants = setup(settings, 64)
    exact = draw(1, 2, TOKENS, 64, dtype=torch.bfloat16)
    whole = codec.decode(codec.encode(exact, constants), constants, torch.float32)
    parts = [codec.decode(codec.encode(part, constants), constants, torch.float32) for part in exact.split(codec.group, 2)]
    # products of other shapes round otherwise: a sign or a code at its very edge may fall on the other side
    assert (torch.cat(parts, 2) - whole).abs().gt(1e-4).float().mean() < 2e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("fill", [0.0, 3.0, -6e4])
def test_constant_tokens_and_huge_ones_stay_finite(settings, fill):
    codec, constants = setup(settings, 64)
    exact = torch.full((1, 1, TOKENS, 64), fill, dtype=torch.float16)
    decoded = codec.decode(codec.encode(exact, constants), constants, torch.float32)
    assert decoded.isfinite().all()
    if fill == 0:
        assert torch.equal(decoded, torch.zeros_like(decoded))


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("queries", [1, 5, 64])
def test_scores_and_mixes_are_those_of_the_decoded(settings, queries):
    codec, constants = setup(settings, 64)
    codes = codec.encode(draw(2, 2, TOKENS, 64), constants)
    decoded = codec.decode(codes, constants, torch.float32).repeat_interleave(4, 1)
    query, weights = draw(2, 8, queries, 64, seed=1), draw(2, 8, queries, TOKENS, seed=2).softmax(-1)
    expected = query @ decoded.transpose(-1, -2)
    assert (codec.scores(query, codes, constants) - expected).norm() <= 1e-5 * expected.norm()
    if "values" in codec.serves:
        assert torch.allclose(codec.mix(weights, codes, constants), weights @ decoded, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_settled_tokens_are_whole_groups_and_never_return(settings):
    codec = make_codec(settings)
    settled = [codec.settled(total) for total in range(700)]
    assert settled == sorted(settled) and all(count % codec.group == 0 for count in settled)
    assert all(count <= total for total, count in enumerate(settled)) and settled[0] == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_constants_follow_the_generator(settings):
    codec = make_codec(settings)
    first, again, other = (codec.constants(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, again[name])
    assert not first or any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codec": "integer", "bits": 1}, "2 to 8"),
        ({"codec": "integer", "axis": "row"}, "channel for keys"),
        ({"codec": "integer", "axis": "channel", "window": 100}, "use window: 96"),
        ({"codec": "qjl", "sketch": 100}, "use 96"),
        ({"codec": "qjl", "outlier_sketch": 8}, "use 32"),
        ({"codec": "qjl", "ratio": 2.0}, "at most 1"),
        ({"codec": "qjl", "window": 48}, "a multiple of 32"),
        ({"codec": "qjl", "projection": "sparse"}, "unknown projection"),
        ({"codec": "rotated", "bits": 5}, "1 to 4"),
        ({"codec": "rotated", "balance": True}, "use group_size: 128"),
        ({"codec": "rotated", "lattice": True}, "2 bits"),
        ({"codec": "rotated", "group_size": 0}, "1 or more"),
        ({"codec": "rotated", "group_size": 100}, "use window: 100"),
        ({"codec": "integer", "window": -1}, "window 0 or more"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(FeatherweightError, match=words):
        make_codec(settings)
