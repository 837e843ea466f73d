"""SpQR: the same walk as GPTQ's, outliers that are kept exactly as stored, bits as counted, bytes as promised."""

import pytest
import torch

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.grids.two_level import TwoLevelGrid
from featherweight.methods.base import Problem
from featherweight.methods.registry import method_from
from featherweight.methods.rtn import RTN
from featherweight.methods.spqr import SpQR
from featherweight.packed.base import empty, from_tensors
from featherweight.packed.dense import Dense
from featherweight.solvers.damping import factorise
from featherweight.solvers.outliers import outlier_scale, spearman_order
from featherweight.solvers.sweep import sweep
from featherweight.statistics.inputs import InputStatistics

SMALL = {"calibration.samples": 16, "calibration.length": 128, "calibration.batch_size": 8}


def make(shapes=((40, 80),), dtype=torch.float32, seed=0, planted=(), dead=()):
    generator = torch.Generator().manual_seed(seed)
    width = shapes[0][1]
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + 0.3
    x = torch.randn(400, width, generator=generator) @ mixing * (torch.rand(width, generator=generator) * 2 + 0.1)
    x[:, list(dead)] = 0.0
    dense = {f"linear{i}": (torch.randn(*shape, generator=generator) * 0.05).to(dtype) for i, shape in enumerate(shapes)}
    for row, column, value in planted:
        dense["linear0"][row, column] = value
    statistics = InputStatistics.from_inputs(x, needs=frozenset({"hessian"}))
    weights = {name: weight.float() for name, weight in dense.items()}
    return Problem(weights, {name: Dense(weight) for name, weight in dense.items()}, statistics, dtype)


def textbook(weight, hessian, bits, threshold, leave_one_out=True, size=16):
    """§3.3.1 column by column with `U` of `H⁻¹`, no second level, in the order of the diagonal."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    damped = (hessian + hessian.diagonal().mean() * torch.eye(len(hessian)))[order][:, order].double()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    work, divisor, grid = weight[:, order].double(), upper.diagonal(), TwoLevelGrid(bits, None, None)
    tau = threshold * float((work.var(0) / divisor.square()).mean())
    kept = torch.zeros_like(work, dtype=torch.bool)
    for column in range(work.shape[1]):
        if column % size == 0:
            group = work[:, column : column + size].float()
            importance = (1 / divisor[column : column + size].square()).float()
            likely = gains_by_hand(group, importance, bits) > tau if leave_one_out else torch.zeros_like(group) > 0
            mean = torch.where(likely, 0.0, group).sum(1, keepdim=True) / (~likely).sum(1, keepdim=True).clamp(min=1)
            parameters = grid.fit(torch.where(likely, mean, group))
        value = work[:, column].clone()
        decoded = grid.decode(grid.encode(value[:, None].float(), parameters), parameters)[:, 0].double()
        kept[:, column] = ((value - decoded) / divisor[column]).square() > tau
        work[:, column] = torch.where(kept[:, column], value, decoded)
        error = (value - work[:, column]) / divisor[column]
        work[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return work[:, order.argsort()].float(), kept[:, order.argsort()]


def gains_by_hand(group, importance, bits):
    def error(part, weights):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        decoded = ((part / scale - low / scale).round() + low / scale) * scale
        return ((decoded - part).square() * weights).sum(1)

    columns = range(group.shape[1])
    others = [[other for other in columns if other != column] for column in columns]
    return torch.stack([error(group, importance) - error(group[:, part], importance[part]) for part in others], 1)


def test_equals_the_textbook():
    problem = make(planted=[(5, 9, 1.5)])
    for threshold in (0.2, 1.0):
        method = SpQR(bits=3, scale_bits=None, zero_bits=None, outlier_threshold=threshold, max_outlier_share=0.3)
        packed = method.compress(problem)["linear0"].weight
        expected, kept = textbook(problem.weights["linear0"], problem.statistics.mean_hessian(), 3, threshold)
        mask = torch.zeros(packed.shape, dtype=torch.bool)
        mask[packed.terms[1].positions()] = True
        assert kept.sum() > 0 and (mask != kept).float().mean() < 0.003
        assert ((packed.dequantize() - expected).abs() > 1e-3).float().mean() < 0.01


def test_without_outliers_and_second_level_it_is_the_sweep():
    problem = make()
    method = SpQR(bits=3, scale_bits=None, zero_bits=None, outlier_threshold=None)
    packed = method.compress(problem)["linear0"].weight
    hessian = problem.statistics.mean_hessian().float()
    factor = factorise(hessian, 1.0, order=hessian.diagonal().argsort(descending=True, stable=True))
    solved = sweep(problem.weights["linear0"], factor, TwoLevelGrid(3, None, None), 16)
    assert torch.equal(packed.dequantize(), solved.decoded) and packed.kind == "two_level" and method.exact


@pytest.mark.parametrize("simplified", [False, True])
def test_a_planted_weight_is_kept_and_does_not_stretch_its_group(simplified):
    problem = make(planted=[(5, 9, 3.0)])
    packed = SpQR(bits=3, simplified_outliers=simplified).compress(problem)["linear0"].weight
    dense, sparse = (term.dequantize() for term in packed.terms)
    assert (sparse[5, 9] != 0) != simplified  # fitted to itself, it is one end of its group's range
    assert packed.dequantize()[5, 9] == pytest.approx(3.0, rel=0.1)
    spread = dense[5, packed.terms[0].index() == packed.terms[0].index()[9]]
    assert (spread.max() - spread.min() > 2.0) == simplified


@pytest.mark.parametrize("order", ["act_order", "identity", "spearman"])
@pytest.mark.parametrize("settings", [{}, {"round_zero": True}, {"symmetric": True}, {"outlier_share": 0.02}])
@pytest.mark.parametrize("shape", [(40, 80), (17, 72)])
def test_storage_holds_what_compress_makes(order, settings, shape):
    problem = make(shapes=(shape, (16, shape[1])), planted=[(5, 9, 3.0)])
    method = SpQR(bits=3, order=order, max_outlier_share=0.2, **settings)
    for name, compressed in method.compress(problem).items():
        planned = method.storage(problem.current[name].description(), problem.dtype)
        packed, facts = compressed.weight, compressed.facts
        assert packed.nbytes <= empty(planned).nbytes
        assert (packed.description() == planned) == method.exact or facts["outlier_share"] == 0.2
        reloaded = from_tensors(packed.description(), packed.tensors())
        assert torch.equal(reloaded.dequantize(), packed.dequantize())
        assert 8 * packed.nbytes / problem.weights[name].numel() == facts["stored_bits"]
        error = (problem.weights[name] - packed.dequantize()).double()
        hessian = problem.statistics.mean_hessian().double()
        weight = problem.weights[name].double()
        measured = float(((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum())
        assert facts["relative_error"] == pytest.approx(measured, rel=1e-2) and measured < 0.05


@pytest.mark.parametrize(
    "settings", [{}, {"bits": 4}, {"round_zero": True}, {"symmetric": True}, {"scale_bits": None, "zero_bits": None}]
)
def test_nominal_bits_are_the_stored_ones_but_for_places_and_order(settings):
    problem = make(shapes=((32, 128),))
    compressed = SpQR(max_outlier_share=0.2, **settings).compress(problem)["linear0"]
    sparse = compressed.weight.terms[1]
    places = 8 * sparse.nbytes - 32 * sparse.described["entries"]  # less than 32 bits for each, where tiles are smaller
    rest = (places + 8 * 128) / (32 * 128)  # and a group per input
    assert compressed.facts["stored_bits"] - rest == pytest.approx(compressed.facts["nominal_bits"], abs=1e-9)
    assert SpQR().nominal_bits(0.01) == pytest.approx(3.945)
    assert SpQR(round_zero=True).nominal_bits(0.0) == pytest.approx(3 + 6 / 16 + 32 / 256)


@pytest.mark.parametrize("share", [0.001, 0.013, 0.2])
def test_a_share_of_outliers_is_met_exactly(share):
    problem = make()
    method = SpQR(outlier_share=share)
    packed = method.compress(problem)["linear0"].weight
    assert packed.terms[1].description()["entries"] == round(share * 3200) and method.exact
    assert packed.description() == method.storage({"kind": "dense", "shape": [40, 80]}, torch.float32)
    worse = SpQR(outlier_share=share / 4).compress(problem)["linear0"].facts["relative_error"]
    assert method.compress(problem)["linear0"].facts["relative_error"] < worse


def test_inputs_that_were_never_active_keep_nothing():
    packed = SpQR().compress(make(dead=(3, 70)))["linear0"].weight
    assert packed.terms[1].dequantize()[:, [3, 70]].count_nonzero() == 0
    assert torch.isfinite(packed.dequantize()).all()


def test_linears_of_one_input_do_not_mix():
    problem = make(shapes=((17, 80), (30, 80)))
    together = SpQR().compress(problem)
    for name in problem.weights:
        alone = Problem({name: problem.weights[name]}, {name: problem.current[name]}, problem.statistics, problem.dtype)
        assert torch.equal(SpQR().compress(alone)[name].weight.dequantize(), together[name].weight.dequantize())


def test_outlier_scale_and_spearman_order_by_hand():
    weight = torch.tensor([[1.0, 9.0, 2.0, 1.0], [2.0, 5.0, 4.0, 3.0], [3.0, 1.0, 6.0, 2.0]])
    factor = factorise(torch.diag(torch.tensor([1.0, 4.0, 0.0, 2.0])), 0.0)
    assert outlier_scale(weight, factor) == pytest.approx((1 * 1 + 4 * 16 + 0 + 2 * 1) / 4)
    assert spearman_order(weight).tolist() == [0, 2, 3, 1]


def test_more_outliers_than_planned_are_an_error():
    with pytest.raises(FeatherweightError) as caught:
        SpQR(bits=2, outlier_threshold=0.01).compress(make())
    for part in ("linear0", "grow", "max_outlier_share: 0.05", "raise outlier_threshold or max_outlier_share"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        *({"group_size": None}, {"group_size": 0}, {"bits": 9}, {"scale_bits": 9}, {"order": "random"}, {"damping": -1.0}),
        *({"outlier_threshold": -1.0}, {"outlier_share": 1.5}, {"max_outlier_share": -0.1}),
    ],
)
def test_bad_settings(settings):
    with pytest.raises(FeatherweightError):
        SpQR(**settings)
    with pytest.raises(FeatherweightError, match="needs groups of inputs"):
        SpQR(group_size=None)


def test_needs_dense_weights_and_data():
    problem = make()
    with pytest.raises(FeatherweightError, match="no Hessian for linear0"):
        SpQR().compress(Problem(problem.weights, problem.current, None, problem.dtype))
    stored = RTN().compress(problem)["linear0"].weight
    with pytest.raises(FeatherweightError, match="first step"):
        SpQR().storage(stored.description(), torch.float32)


def test_saved_and_loaded_weights_are_those_that_the_solver_made(tmp_path, monkeypatch):
    made = {}
    solve = SpQR.compress

    def remember(self, problem):
        compressed = solve(self, problem)
        made.update({name: each.weight.dequantize() for name, each in compressed.items()})
        return compressed

    monkeypatch.setattr(SpQR, "compress", remember)
    plan = fw.plan("demo", "spqr-3bit", changes=SMALL)
    result = fw.compress(plan, tmp_path / "out")
    model = fw.load(tmp_path / "out", dtype=torch.float32)
    assert len(made) == 28
    for name, values in made.items():
        assert torch.equal(model.get_submodule(name).packed.dequantize(), values.cpu()), name
    for planned, row in zip(plan.rows, result.rows, strict=True):
        assert planned.at_most == bool(planned.chain) and row.bytes <= planned.predicted_bytes
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("model-*.safetensors"))
    assert files == result.totals.file_bytes < plan.totals.file_bytes
    assert fw.verify(tmp_path / "out")["proof"]["largest_difference"] < 1e-5


def test_a_share_makes_the_plan_exact():
    plan = fw.plan("demo", "spqr-3bit", changes={"steps.0.outlier_share": 0.01})
    assert not any(row.at_most for row in plan.rows)


def test_residuals_in_eight_bits_are_what_the_walk_went_on_with():
    problem = make()
    for bits in (16, 8):
        for name, compressed in SpQR(outlier_share=0.02, outlier_bits=bits).compress(problem).items():
            sparse = compressed.weight.terms[1]
            assert sparse.stored["values"].element_size() * 8 == bits and sparse.described["entries"] > 0
            assert compressed.weight.description() == SpQR(outlier_share=0.02, outlier_bits=bits).storage(
                problem.current[name].description(), problem.dtype
            )
            kept = torch.zeros_like(problem.weights[name], dtype=torch.bool)
            kept[sparse.positions()] = True
            assert compressed.facts["relative_error"] < 0.05 and compressed.facts["outlier_share"] == pytest.approx(
                0.02, abs=1e-3
            )


def test_the_weighted_fit_lowers_the_objective():
    problem = make()
    errors = [
        sum(each.facts["relative_error"] for each in SpQR(outlier_threshold=None, fit=fit).compress(problem).values())
        for fit in ("minmax", "weighted")
    ]
    assert errors[1] < 0.9 * errors[0]


def test_a_two_level_grid_without_groups_is_refused():
    for group_size in (None, 0, -1):
        with pytest.raises(FeatherweightError, match="16"):
            method_from("spqr", {"group_size": group_size})
    with pytest.raises(FeatherweightError, match="levels hold 0"):
        SpQR().storage({"kind": "masked", "shape": [4, 64]}, torch.bfloat16)


def test_outliers_that_would_take_more_than_the_weights_are_refused():
    current = {"kind": "dense", "shape": [64, 512]}
    with pytest.raises(FeatherweightError, match="larger than 16 bits"):
        SpQR(outlier_share=0.6).storage(current, torch.bfloat16)
