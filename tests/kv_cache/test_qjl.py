"""QJL: the estimator against its formula, its mean and its spread over projections."""

from math import pi, sqrt

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.kernels.reference.qjl import qjl_scores
from featherweight.kv_cache.qjl import QJL, sketch_length


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sketched(codec, head_dim, keys, seed=3):
    constants = codec.constants(head_dim, torch.Generator().manual_seed(seed))
    return codec.encode(keys, constants), constants


def textbook(query, keys, projection, outliers, outlier_sketch, constant):
    """Scores of one query with the keys of one group, as the paper's estimator and the authors' outliers say."""
    loudest = keys.pow(2).sum(0).argsort(descending=True)[:outliers].tolist()
    apart = torch.tensor([channel in loudest for channel in range(keys.shape[1])])
    scores = []
    for key in keys:
        total = 0.0
        for part, columns in ((~apart, projection), (apart, projection[:, :outlier_sketch])):
            norm = sum(float(key[channel]) ** 2 for channel in range(len(key)) if part[channel]) ** 0.5
            for column in columns.T:
                sign = 1 if float(column @ (key * part)) > 0 else -1
                total += constant / columns.shape[1] * norm * sign * float(column @ (query * part))
        scores.append(total)
    return torch.tensor(scores)


@pytest.mark.parametrize("outliers", [0, 3, 16])
def test_scores_are_those_of_the_formula(outliers):
    codec = QJL(sketch=64, outliers=outliers, outlier_sketch=32, group_size=8, window=16, projection="gaussian")
    keys, query = draw(1, 1, 16, 16), draw(1, 1, 1, 16, seed=1)
    codes, constants = sketched(codec, 16, keys)
    expected = [
        textbook(query[0, 0, 0], part, constants["projection"], outliers, 32, sqrt(pi / 2)) for part in keys[0, 0].split(8)
    ]
    assert torch.allclose(codec.scores(query, codes, constants)[0, 0, 0], torch.cat(expected), atol=1e-4)


@pytest.mark.parametrize("projection", ["gaussian", "orthogonal", "hadamard"])
@pytest.mark.parametrize("outliers", [0, 4])
def test_the_mean_over_projections_is_the_exact_product(projection, outliers):
    codec = QJL(sketch=2**15, outliers=outliers, projection=projection)  # 2048 projections of 16 columns
    keys = draw(1, 1, 32, 16)
    codes, constants = sketched(codec, 16, keys)
    scores = codec.scores(keys, codes, constants)[0, 0]
    exact = keys[0, 0] @ keys[0, 0].T
    ratio = (scores.diagonal() / exact.diagonal()).mean()
    assert abs(ratio - 1) < 0.005  # √(π/2) on the sphere of 16 dimensions would give 1.016
    assert (scores - exact).abs().max() < 0.02 * exact.diagonal().max()


def test_the_authors_constant_is_the_one_of_normal_columns():
    assert QJL(constant="gaussian").unbiased(64) == QJL(projection="gaussian").unbiased(64) == pytest.approx(sqrt(pi / 2))
    assert QJL().unbiased(64) / sqrt(pi / 2) == pytest.approx(1 - 0.0039, abs=1e-4)
    assert QJL().unbiased(128) / sqrt(pi / 2) == pytest.approx(1 - 0.00195, abs=1e-4)


def spread(codec, head_dim=64):
    """Root mean square error of scores, relative to the product of the norms; 16 projections."""
    keys, query = draw(1, 1, 64, head_dim), draw(1, 1, 64, head_dim, seed=1)
    exact = query @ keys.transpose(-1, -2)
    norms = query.norm(dim=-1, keepdim=True) * keys.norm(dim=-1).unsqueeze(-2)
    errors = [
        ((codec.scores(query, *sketched(codec, head_dim, keys, seed)) - exact) / norms).pow(2).mean() for seed in range(16)
    ]
    return float(torch.stack(errors).mean().sqrt())


@pytest.mark.parametrize("projection", ["gaussian", "orthogonal"])
def test_the_error_falls_with_the_root_of_the_sketch(projection):
    few, many = (spread(QJL(sketch=m, outliers=0, projection=projection)) for m in (64, 1024))
    assert few / many == pytest.approx(4, rel=0.08)


def test_orthogonal_columns_spread_less_than_normal_ones():
    errors = {
        projection: spread(QJL(sketch=128, outliers=0, projection=projection)) for projection in ("gaussian", "orthogonal")
    }
    assert errors["gaussian"] == pytest.approx(sqrt(pi / 2 / 128), rel=0.05)  # √((π/2 − cos²)/m), cos² = 1/64 on average
    assert errors["orthogonal"] < 0.85 * errors["gaussian"]


def test_outliers_apart_spare_the_other_channels():
    keys = draw(1, 1, 64, 64)
    keys[..., 7] = 40 * keys[..., 7].sign()
    query = draw(1, 1, 64, 64, seed=1)
    exact = query @ keys.transpose(-1, -2)
    with_them, without = (
        (codec.scores(query, *sketched(codec, 64, keys)) - exact).norm()
        for codec in (QJL(outliers=1), QJL(outliers=0, ratio=1.0))
    )
    assert with_them < 0.5 * without


def test_one_sketch_serves_the_query_heads_of_its_key_head():
    keys, query = draw(2, 3, 64, 64), draw(2, 12, 2, 64, seed=1)
    codec = QJL()
    codes, constants = sketched(codec, 64, keys)
    grouped = codec.scores(query, codes, constants)
    for head in range(12):
        alone = {name: tensor[:, head // 4 : head // 4 + 1] for name, tensor in codes.items()}
        assert torch.allclose(codec.scores(query[:, head : head + 1], alone, constants)[:, 0], grouped[:, head], atol=1e-4)


@pytest.mark.parametrize("outliers", [0, 8, 64])
@pytest.mark.parametrize("queries", [1, 100])
def test_sketches_and_decoded_keys_score_alike(outliers, queries):
    codec, keys, query = QJL(outliers=outliers), draw(1, 2, 96, 64), draw(1, 4, queries, 64, seed=1)
    codes, constants = sketched(codec, 64, keys)
    decoded = codec.decode(codes, constants, torch.float32).repeat_interleave(2, 1)
    scores = qjl_scores(query, codes, constants["projection"], codec.unbiased(64))
    expected = query @ decoded.transpose(-1, -2)
    assert (scores - expected).norm() < 1e-5 * expected.norm()
    assert torch.allclose(codec.scores(query, codes, constants), expected, atol=1e-3)


def test_no_token_is_no_score_and_a_key_of_zeros_scores_zero():
    codec = QJL()
    for tokens in (0, 32):
        codes, constants = sketched(codec, 64, torch.zeros(1, 1, tokens, 64))
        scores = codec.scores(draw(1, 2, 1, 64), codes, constants)
        assert scores.shape == (1, 2, 1, tokens) and not scores.any()


def test_half_precision_norms_give_no_nan():
    keys = torch.zeros(1, 1, 32, 64, dtype=torch.float16)
    keys[..., :8] = 30.0  # all of the norm is the outliers': a difference of two norms could be below 0
    codec = QJL()
    codes, constants = sketched(codec, 64, keys)
    assert not codes["norm"].any() and codec.scores(keys[:, :, :1], codes, constants).isfinite().all()


def test_bits_and_lengths_are_those_of_the_paper():
    assert QJL(sketch=256).stored_bits(128, torch.float16) == pytest.approx(4.27, abs=0.005)
    assert QJL(sketch=512, outlier_sketch=128).stored_bits(128, torch.float16) == pytest.approx(5.27, abs=0.005)
    assert QJL(sketch=256, outliers=0).stored_bits(128, torch.float16) == 2.125
    assert [sketch_length(0.5, 128), sketch_length(1.0, 128), sketch_length(0.5, 64), sketch_length(0.01, 64)] == [
        256,
        512,
        128,
        32,
    ]
    assert QJL().lengths(128) == (256, 256)


@pytest.mark.parametrize(
    ("codec", "head_dim", "words"),
    [
        (QJL(outliers=20), 16, "at most all channels"),
        (QJL(), 512, "of at most 256"),
        (QJL(sketch=64, outlier_sketch=128), 64, "at most 64"),
        (QJL(projection="hadamard"), 80, "use projection: orthogonal"),
    ],
)
def test_heads_that_cannot_be_sketched(codec, head_dim, words):
    with pytest.raises(FeatherweightError, match=words):
        codec.check(head_dim)
