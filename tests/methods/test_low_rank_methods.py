"""Low-rank terms: as planned after any step, old terms untouched, never a larger error; LPLR in its three forms."""

from dataclasses import replace

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.gptq import GPTQ
from featherweight.methods.low_rank import LowRankCorrection
from featherweight.methods.lplr import LPLR
from featherweight.methods.rtn import RTN
from featherweight.methods.wanda import Wanda
from featherweight.packed.base import described_bytes
from featherweight.packed.dense import Dense
from featherweight.packed.sum import Sum
from problems import make, relative_error, run

CHAINS = [
    [RTN(bits=3, group_size=None)],
    [GPTQ(bits=2, group_size=16, order="dynamic")],
    [Wanda(), RTN(bits=4, group_size=16)],
    [GPTQ(bits=2, group_size=16), LowRankCorrection(rank=2)],
]
SETTINGS = [
    {"rank": 4},
    {"rank": 4, "left_bits": 16, "right_bits": 2, "randomized": False},
    {"rank": 4, "factor_grid": "normal", "activation_aware": False},
    {"rank": (2, 3), "left_bits": (8, 4), "right_bits": 3, "factor_grid": "clipped"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(method.name for method in chain))
def test_terms_are_added_and_the_error_never_rises(chain, settings):
    problem, step = make(), LowRankCorrection(**settings)
    before, _ = run(problem, *chain)
    after, facts = {}, {}
    for name, compressed in step.compress(replace(problem, current=before)).items():
        weight, old = compressed.weight, before[name]
        assert weight.description() == step.storage(old.description(), problem.dtype)
        old_terms = old.terms if isinstance(old, Sum) else (old,)
        assert weight.terms[: len(old_terms)] == old_terms  # the very same objects
        assert compressed.facts["relative_error"] <= compressed.facts["error_before_correction"]
        after[name], facts[name] = weight, compressed.facts
    if step.activation_aware:
        error = relative_error(problem, after)
        assert error < relative_error(problem, before)
        assert error == pytest.approx(sum(each["relative_error"] for each in facts.values()) / len(facts), rel=1e-3)


def test_what_is_exact_already_is_corrected_by_zeros():
    problem = make()
    stored = LowRankCorrection(rank=2, left_bits=2).compress(problem)["linear0"]
    assert stored.facts["solver"] == "as before"
    assert torch.equal(stored.weight.dequantize(), problem.current["linear0"].dequantize())


def test_data_aware_beats_data_free_and_more_bits_and_rank_help():
    problem, base = make(((48, 80), (32, 80))), GPTQ(bits=2, group_size=16)

    def error(**settings):
        return relative_error(problem, run(problem, base, LowRankCorrection(**settings))[0])

    assert error(rank=8) < error(rank=8, activation_aware=False)
    assert error(rank=16, left_bits=16, right_bits=16) < error(rank=8, left_bits=16, right_bits=16)
    assert error(rank=8, left_bits=16, right_bits=16) < error(rank=8, left_bits=2, right_bits=2)


def test_rank_bits_buy_the_largest_rank():
    step, described = LowRankCorrection(rank_bits=0.5), Dense.describe((256, 512), torch.bfloat16)
    planned = step.storage(described, torch.bfloat16)["terms_1"]
    bits = 8 * described_bytes(planned) / (256 * 512)
    assert 0.5 - bits / planned["rank"] < bits <= 0.5
    by_hand = planned["rank"] * ((256 + 512) * 4 + 16 * (256 // 64 + 512 // 64)) / (256 * 512)
    assert bits == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 90}, "exceeds the smaller side 80"),
        ({"rank_bits": 0.01}, "at least"),
    ],
)
def test_a_rank_that_does_not_fit_a_linear(settings, says):
    with pytest.raises(FeatherweightError, match=says):
        LowRankCorrection(**settings).storage(Dense.describe((80, 96), torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"left_bits": 5, "factor_grid": "normal"}, "2, 3, 4, 8"),
        ({"right_bits": 12}, "2 to 8"),
        ({"rank": (4, 4), "left_bits": (2, 4, 8)}, "strips"),
        ({"rank": 0}, "rank"),
        ({"factor_iterations": -1}, "factor_iterations"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(FeatherweightError, match=says):
        LowRankCorrection(**settings)


def test_lplr_and_its_baselines():
    problem = make(((64, 80), (48, 80)))
    errors = {}
    for algorithm in ("alternating", "svd", "sketch"):
        done, _ = run(problem, LPLR(rank=24, algorithm=algorithm))
        assert {weight.kind for weight in done.values()} == {"low_rank"}
        errors[algorithm] = relative_error(problem, done)
    assert errors["alternating"] < errors["svd"] < errors["sketch"] < 1
    strips, _ = run(problem, LPLR(rank=(4, 20), left_bits=(8, 4), right_bits=(8, 4)))
    assert relative_error(problem, strips) < errors["alternating"]
    with pytest.raises(FeatherweightError, match="method: low-rank"):
        LPLR().storage(next(iter(strips.values())).description(), torch.bfloat16)
