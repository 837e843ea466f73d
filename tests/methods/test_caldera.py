"""CALDERA and the data-free decomposition: as planned, better than correcting once, never without a part."""

from dataclasses import replace

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.caldera import CALDERA
from featherweight.methods.decompose import Decompose
from featherweight.methods.gptq import GPTQ
from featherweight.methods.low_rank import LowRankCorrection
from featherweight.methods.lplr import LPLR
from featherweight.methods.quip import QuIP
from featherweight.methods.registry import METHODS
from featherweight.packed.base import described_bytes
from featherweight.packed.dense import Dense
from featherweight.packed.low_rank import LowRank
from featherweight.planning.recipe import load_recipe
from featherweight.solvers.downdate import downdated
from featherweight.solvers.low_rank import Metric, best_factors
from problems import make, relative_error, run

WIDE = ((64, 96), (32, 96))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "low-rank first", "downdate": 0.0, "randomized": False},
        {"rank": (2, 4), "left_bits": (8, 4), "downdate": 1.0, "group_size": None},
    ],
    ids=str,
)
def test_alternating_beats_correcting_once(settings):
    problem = make(WIDE)
    rank = settings.get("rank", 6)
    once = [GPTQ(bits=2, group_size=settings.get("group_size", 32), symmetric=True, fit="weighted"), LowRankCorrection(rank=6)]
    done, facts = run(
        problem, CALDERA(**{"grid": "uniform", "hadamard": False, "group_size": 32, "iterations": 4, "rank": rank, **settings})
    )
    error = relative_error(problem, done)
    assert error < relative_error(problem, run(problem, *once)[0])
    for each in facts.values():
        assert len(each["error_by_iteration"]) == 4 and each["relative_error"] == min(each["error_by_iteration"])
        assert each["rank"] == 6
    assert error == pytest.approx(sum(each["relative_error"] for each in facts.values()) / 2, rel=1e-3)


def test_more_iterations_never_hurt():
    problem = make(((32, 64),))
    errors = [relative_error(problem, run(problem, CALDERA(rank=6, iterations=n))[0]) for n in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_polishing_lowers_the_error_and_leaves_the_term_as_it_is():
    problem = make(((32, 64),))
    plain, polished = (CALDERA(rank=6, iterations=2, polish=passes).compress(problem)["linear0"] for passes in (0, 10))
    assert polished.facts["relative_error"] < plain.facts["relative_error"]
    tensors = plain.weight.tensors(), polished.weight.tensors()
    kept = {name for name in tensors[0] if torch.equal(tensors[0][name], tensors[1][name])}
    assert tensors[0].keys() - kept == {"inner_terms_0_codes", "inner_terms_0_scale"}


def test_every_part_is_there_even_where_one_alone_was_better():
    """On the lattice, between rotations."""
    problem = make(((16, 24),))  # of full rank, in 16 bits: exact without Q
    step = CALDERA(rank=16, left_bits=16, right_bits=16, order="low-rank first", iterations=1)
    stored = step.compress(problem)["linear0"].weight.inner
    assert [term.kind for term in stored.terms] == ["lattice", "low_rank"]
    assert stored.description() == step.storage(problem.current["linear0"].description(), problem.dtype)["inner"]


def test_the_downdated_hessian_is_what_the_best_left_factor_leaves():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator) @ torch.randn(20, 20, generator=generator)
    metric, error = Metric(x.T @ x / 200), torch.randn(8, 20, generator=generator)
    right = torch.randn(3, 20, generator=generator)
    left = torch.linalg.solve(right @ metric.hessian @ right.T, right @ metric.hessian @ error.T).T
    least = metric.energy(error - left @ right)
    assert Metric(downdated(metric.hessian, right)).energy(error) == pytest.approx(least, rel=1e-3)
    # and it is M (1 − V Vᵀ) Mᵀ with the right singular vectors of L R M, as the authors have it
    root = torch.linalg.cholesky(metric.hessian.double())
    rows = torch.linalg.svd(left.double() @ right.double() @ root).Vh[:3]
    theirs = metric.hessian.double() - root @ rows.T @ rows @ root.T
    torch.testing.assert_close(downdated(metric.hessian, right).double(), theirs, rtol=1e-3, atol=1e-3)
    assert torch.equal(downdated(metric.hessian, right, 0.0), metric.hessian)


def test_rounded_plus_sparse_plus_low_rank():
    problem = make(WIDE)
    kinds = {}
    for label, settings in {
        "plain": {},
        "sparse": {"sparse_share": 0.02},
        "loftq": {"grid": "normal", "left_bits": 16, "right_bits": 16, "first": "low-rank"},
        "aware": {"activation_aware": True},
    }.items():
        done, facts = run(problem, Decompose(bits=3, rank=6, iterations=4, **settings))
        kinds[label] = [term.kind for term in done["linear0"].terms]
        weights = [(problem.weights[name] - done[name].dequantize()).square().sum() for name in done]
        energy = [weight.square().sum() for weight in problem.weights.values()]
        if label != "aware":
            shares = [float(left / whole) for left, whole in zip(weights, energy, strict=True)]
            assert [each["relative_error"] for each in facts.values()] == pytest.approx(shares, rel=1e-3)
            assert shares[0] < 0.03  # rounding to three bits alone: 0.035
    assert kinds["plain"] == ["integer", "low_rank"] and kinds["sparse"] == ["integer", "sparse_rows", "low_rank"]
    assert kinds["loftq"] == ["normal_float", "low_rank"]


def test_a_planted_low_rank_part_and_planted_entries_are_found():
    problem = make(((48, 64),))
    weight = problem.weights["linear0"]
    generator = torch.Generator().manual_seed(3)
    weight += torch.randn(48, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    weight[5, 7] = weight[9, 9] = 40.0
    problem.current["linear0"] = Dense(weight)
    step = Decompose(bits=4, rank=2, left_bits=16, right_bits=16, sparse_share=2 / weight.numel(), first="sparse")
    stored = step.compress(problem)["linear0"].weight
    rows, columns = stored.terms[1].positions()
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(5, 7), (9, 9)}
    assert isinstance(stored.terms[2], LowRank)
    alone = best_factors(weight, Metric(), 2)
    left = (weight - stored.dequantize()).square().sum()
    assert left < 0.1 * (weight - alone.left.T @ alone.right).square().sum()


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        (CALDERA, {"bits": 9}, "2, 3 or 4"),
        (CALDERA, {"bits": 9, "grid": "uniform"}, "2 to 8"),
        (CALDERA, {"iterations": 0}, "iterations"),
        (CALDERA, {"downdate": 2.0}, "downdate 0 to 1"),
        (CALDERA, {"order": "mixed"}, "rounded first"),
        (Decompose, {"first": "sparse"}, "rounded, low-rank"),
        (Decompose, {"sparse_share": 0.7}, "below 0.5"),
        (Decompose, {"bits": 6, "grid": "normal"}, "2, 3, 4, 8"),
    ],
)
def test_settings_that_cannot_be(method, settings, says):
    with pytest.raises(FeatherweightError, match=says):
        method(**settings)


def test_it_starts_from_dense_weights():
    problem = make(WIDE)
    stored = run(problem, GPTQ(bits=4, group_size=32))[0]["linear0"].description()
    for method in (CALDERA(), Decompose()):
        with pytest.raises(FeatherweightError, match="method: low-rank"):
            method.storage(stored, problem.dtype)


def test_on_the_lattice_between_rotations_it_beats_quip_at_like_bits():
    """Random weights have no leading directions, so that the low-rank term does better after the first rounding."""
    problem = make(((96, 64), (48, 64)))
    done, facts = run(problem, CALDERA(rank_bits=0.5, iterations=3, order="best"))
    assert {each["order"] for each in facts.values()} == {"rounded first"}
    assert {weight.kind for weight in done.values()} == {"rotated"}
    assert relative_error(problem, done) < relative_error(
        problem, run(problem, QuIP(bits=2), LowRankCorrection(rank_bits=0.5))[0]
    )
    x = torch.randn(3, 64)
    torch.testing.assert_close(done["linear0"].matmul(x), x @ done["linear0"].dequantize().T, rtol=1e-3, atol=1e-4)


def test_factors_on_the_lattice():
    problem = make(((64, 96),))
    step = LowRankCorrection(rank=9, factor_grid="lattice")
    base = GPTQ(bits=2, group_size=32)
    done, _ = run(problem, base, step)
    assert done["linear0"].terms[1].left.kind == "lattice"
    assert 8 * done["linear0"].terms[1].nbytes == 9 * 4 * (64 + 96) + 2 * 32  # exactly four bits, and two scales
    assert relative_error(problem, done) < 0.8 * relative_error(problem, run(problem, base)[0])


@pytest.mark.parametrize(("name", "bits"), [("lplr-q-seed", 2.1), ("caldera-paper-2bit", 2.4)])
def test_presets_take_the_authors_bits_on_the_layers_of_7b(name, bits):
    step = load_recipe(name).steps[0]
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    method = METHODS[step.method](**step.settings)
    stored = sum(described_bytes(method.storage(Dense.describe(shape, torch.bfloat16), torch.bfloat16)) for shape in shapes)
    assert 8 * stored / sum(rows * columns for rows, columns in shapes) == pytest.approx(bits, abs=0.03)


@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (4096, 11008)])
def test_bits_on_the_shapes_of_7b(shape):
    planned = CALDERA(rank_bits=0.2).storage(Dense.describe(shape, torch.bfloat16), torch.bfloat16)
    assert 2.19 < 8 * described_bytes(planned) / (shape[0] * shape[1]) < 2.205


def test_rotated_ranks_spread_what_is_rounded_and_change_nothing_else():
    """Unrounded, Θ falls out of the product; on the lattice, with one scale for a whole factor, no rank is above the others."""
    shape, settings = ((64, 96),), {"factor_grid": "lattice", "left_bits": 3, "right_bits": 3}

    def mean_error(rotation):
        problems = [make(shape, seed=seed) for seed in range(3)]
        step = LPLR(rank=24, rank_rotation=rotation, **settings)
        return sum(relative_error(problem, run(problem, step)[0]) for problem in problems) / len(problems)

    assert mean_error("hadamard") < mean_error("none")
    exact, uneven = {}, {}
    for rotation in ("none", "hadamard", "haar"):
        step = LPLR(rank=(3, 6), left_bits=16, right_bits=16, rank_rotation=rotation)
        exact[rotation] = step.compress(make(shape))["linear0"].weight
        energies = exact[rotation].terms[1].left.dequantize().square().sum(1)
        uneven[rotation] = float(energies.max() / energies.min())
    for rotation in ("hadamard", "haar"):
        torch.testing.assert_close(exact[rotation].dequantize(), exact["none"].dequantize(), rtol=1e-2, atol=1e-3)
    assert uneven["hadamard"] < uneven["none"]
    with pytest.raises(FeatherweightError, match="rank_rotation"):
        LPLR(rank_rotation="fourier")


@pytest.mark.parametrize("method", [CALDERA, LowRankCorrection, LPLR, Decompose])
def test_eigenvalues_that_are_not_positive_are_repaired_and_recorded(method):
    """Fewer tokens than inputs, and a Hessian that rounding made indefinite."""
    problem = make(((16, 32),))
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    hessian = x.T @ x
    hessian -= 1e-3 * hessian.diagonal().mean() * torch.eye(32)
    problem = replace(problem, statistics=replace(problem.statistics, hessian=hessian))
    step = method(rank=4, randomized=False, damping=0.0, **({"activation_aware": True} if method is Decompose else {}))
    done = step.compress(problem)["linear0"]
    assert bool(done.weight.dequantize().isfinite().all()) and 0 <= done.facts["relative_error"] < 1
    assert done.facts["eigenvalues_repaired"] >= 12 and done.facts["smallest_eigenvalue"] < 0
    if method is CALDERA:
        assert done.facts["damping"] > 0, "the walk found no factor without damping, and says what it took"
    sound = method(rank=4, randomized=False).compress(make(((16, 32),)))["linear0"].facts
    assert sound.get("eigenvalues_repaired", 0) == 0
