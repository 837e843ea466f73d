from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models.axes import find_producers
from featherweight.models.axis import Axis
from featherweight.models.draw import draw_transform
from featherweight.models.folding import fold
from featherweight.models.probe import DoublePrecision
from featherweight.models.producers import find_all_producers
from featherweight.models.skeleton import build_skeleton
from featherweight.models.structure import find_structure
from featherweight.models.transforms import Diagonal, Hadamard, Permutation

from .families import EXPERTS, FAMILIES, make_config, make_model, some_tokens

D, P, R = "diagonal", "permutation", "orthogonal"
NORM, ATTENTION, GATED, PLAIN = {D}, {D, P, R}, {D, P}, {P}
LLAMA = [NORM, ATTENTION, NORM, GATED]
#: what each axis of a block admits, in the order of execution
EXPECTED = {
    "opt-125m": [NORM, ATTENTION, NORM, GATED],
    "opt-350m": [set(), ATTENTION, set(), GATED],
    "gpt2": [NORM, ATTENTION, NORM, PLAIN],
    "falcon-7b": [NORM, ATTENTION, PLAIN],
    "falcon-40b": [NORM, ATTENTION, NORM, PLAIN],
    "bloom": [NORM, ATTENTION, NORM, PLAIN],
    "gpt-neox": [NORM, ATTENTION, NORM, PLAIN],
    **{family: [NORM, ATTENTION, *[set(), GATED] * 4] for family in EXPERTS},
    "qwen2-moe": [NORM, ATTENTION, *[set(), GATED] * 5],
    "gpt-oss": [NORM, ATTENTION, *[set(), PLAIN] * 4],  # it adds 1 to what the rows make
}


@cache
def axes_of(family):
    skeleton = build_skeleton(make_config(family))
    return find_all_producers(skeleton, find_structure(skeleton))


def logits_of(model, tokens):
    with DoublePrecision():
        return model(tokens, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_what_each_axis_admits(family):
    expected = EXPECTED.get(family, LLAMA)
    for axes in axes_of(family).values():
        found = [set(axis.admits) for axis in axes]
        assert found == expected or (
            family.startswith("falcon") and sorted(map(sorted, found)) == sorted(map(sorted, expected))
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_admitted_map_leaves_the_logits_alone(family):
    model = make_model(family, torch.float64, separate=True)
    tokens = some_tokens()
    generator = torch.Generator().manual_seed(3)
    before = logits_of(model, tokens)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for axes in axes_of(family).values():
        for axis in axes:
            for kind in sorted(axis.admits):
                fold(model, axis, draw_transform(axis, kind, generator))
                now = model.state_dict()
                changed = {name for name in now if not torch.equal(now[name], start[name])}
                assert {f"{name}.weight" for name in axis.consumers} <= changed
                torch.testing.assert_close(logits_of(model, tokens), before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    assert any(axis.admits for axes in axes_of(family).values() for axis in axes)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_admitted_is_refused(family):
    model = make_model(family, torch.float64, separate=True)
    for axis in next(iter(axes_of(family).values())):
        for kind in {D, P, R} - axis.admits:
            transform = draw_transform(replace(axis, groups=None, shared=None), kind, torch.Generator().manual_seed(5))
            with pytest.raises(FeatherweightError, match=f"admits no {kind}"):
                fold(model, axis, transform)


@pytest.mark.parametrize(
    ("family", "index", "kind"),
    [("gpt2", 3, D), ("gpt2", 3, R), ("opt-125m", 3, R), ("llama", 0, R), ("llama", 3, R), ("phi3", 3, R), ("bloom", 2, P)],
)
def test_what_is_not_admitted_would_be_wrong(family, index, kind):
    """Forced on the producers that are known, a refused map changes the logits."""
    model = make_model(family, torch.float64, separate=True)
    tokens = some_tokens()
    before = logits_of(model, tokens)
    axis = next(iter(axes_of(family).values()))[index]
    assert kind not in axis.admits
    producers = tuple(replace(producer, admits=frozenset({kind})) for producer in axis.producers)
    assert producers
    transform = draw_transform(axis, kind, torch.Generator().manual_seed(5))
    fold(model, replace(axis, producers=producers, admits=frozenset({kind})), transform)
    assert float((logits_of(model, tokens) - before).abs().max()) > 1e-4 * float(before.abs().max())


def test_a_norm_whose_output_is_also_the_residual_admits_nothing():
    axis = axes_of("opt-350m")["model.decoder.layers.0"][2]
    assert axis.consumers == ("model.decoder.layers.0.fc1",) and not axis.producers and not axis.admits


def test_an_axis_that_a_router_reads_too_is_refused():
    model = make_model("qwen2-moe", torch.float64)
    axis = axes_of("qwen2-moe")["model.layers.0"][2]
    assert axis.others
    with pytest.raises(FeatherweightError, match=r"mlp\.gate"):
        fold(model, replace(axis, admits=frozenset({D})), Diagonal(torch.ones(32)))


def test_rows_of_fused_and_grouped_weights_are_found():
    axes = axes_of("phi3")["model.layers.0"]
    (values,) = axes[1].producers  # qkv: 4 query heads, 2 key heads, 2 value heads of 8
    assert values.rows == tuple(48 + 8 * (head // 2) + place for head in range(4) for place in range(8))
    assert axes[1].shared == values.rows
    assert [len({axes[1].groups[8 * head + place] for place in range(8)}) for head in range(4)] == [1] * 4
    assert len(set(axes[1].groups)) == 4
    up, gate = axes[3].producers
    assert (up.name, gate.name) == ("model.layers.0.mlp.gate_up_proj",) * 2
    assert up.rows == tuple(range(48, 96)) and gate.rows == tuple(range(48))
    assert up.admits == {D, P} and gate.admits == {P}
    assert axes_of("gpt2")["transformer.h.0"][1].producers[0].rows == tuple(range(64, 96))
    bloom = axes_of("bloom")["transformer.h.1"][1].producers[0]  # heads of (query, key, value), interleaved
    assert bloom.rows == tuple(24 * head + 16 + place for head in range(4) for place in range(8))


def test_norms_know_their_offset():
    assert axes_of("llama")["model.layers.1"][0].producers[0].offset == 0
    assert axes_of("gemma2")["model.layers.1"][0].producers[0].offset == 1
    assert axes_of("gemma2")["model.layers.1"][2].producers[0].name == "model.layers.1.pre_feedforward_layernorm"


def test_one_block_is_found_as_all_are():
    skeleton = build_skeleton(make_config("llama"))
    structure = find_structure(skeleton)
    assert find_producers(skeleton, structure, "model.layers.1") == axes_of("llama")["model.layers.1"]
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}


TRANSFORMS = [
    Diagonal(torch.tensor([0.5, 2.0, 3.0, 1.0])),
    Permutation(torch.tensor([2, 0, 3, 1])),
    Hadamard(torch.tensor([1.0, -1.0, -1.0, 1.0]), 2),
    Hadamard(torch.tensor([1.0, -1.0, 1.0, 1.0]), 4, inverted=True),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inverse_and_matrix_agree_with_apply(transform):
    x = torch.randn(3, 4, dtype=torch.float64)
    matrix = transform.matrix()
    torch.testing.assert_close(transform.apply(x), x @ matrix.T)
    torch.testing.assert_close(transform.inverse().apply(transform.apply(x)), x)
    torch.testing.assert_close(transform.contragredient().matrix(), torch.linalg.inv(matrix).T)
    assert transform.apply(x.float()).dtype == torch.float32


def test_hadamard_is_the_textbook_matrix():
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    expected = torch.kron(torch.kron(two, two), two) / 8**0.5
    torch.testing.assert_close(Hadamard(torch.ones(8), 8).matrix(), expected)


def test_malformed_maps_are_refused():
    for make in (
        lambda: Diagonal(torch.tensor([1.0, -1.0])),
        lambda: Diagonal(torch.tensor([1.0, float("nan")])),
        lambda: Permutation(torch.tensor([0, 0])),
        lambda: Permutation(torch.tensor([0.0, 1.0])),
        lambda: Hadamard(torch.tensor([1.0, 0.5]), 2),
        lambda: Hadamard(torch.ones(6), 4),
        lambda: Hadamard(torch.ones(6), 0),
        lambda: Hadamard(torch.ones(6), 3, made="2^2"),
    ):
        with pytest.raises(FeatherweightError):
            make()


def test_maps_that_break_heads_or_shared_rows_are_refused():
    model = make_model("llama", torch.float64)
    axis = axes_of("llama")["model.layers.0"][1]
    with pytest.raises(FeatherweightError, match="across attention heads"):
        fold(model, axis, Permutation(torch.arange(32).roll(1)))
    with pytest.raises(FeatherweightError, match="across attention heads"):
        fold(model, axis, Hadamard(torch.ones(32), 16))
    with pytest.raises(FeatherweightError, match="grouped-query"):
        fold(model, axis, Diagonal(torch.linspace(1, 2, 32)))
    with pytest.raises(FeatherweightError, match="does not fit"):
        fold(model, axis, Diagonal(torch.ones(16)))
    skeleton = build_skeleton(make_config("llama"))
    with pytest.raises(FeatherweightError, match="not loaded"):
        fold(skeleton, axis, Diagonal(torch.ones(32)))


def test_draws_fit_awkward_heads():
    generator = torch.Generator().manual_seed(0)
    twelve = Axis("x", "b", 24, ("c",), groups=(0,) * 12 + (1,) * 12)
    assert draw_transform(twelve, R, generator).block == 12
    apart = Axis("x", "b", 4, ("c",), groups=(0, 1, 0, 1))
    with pytest.raises(FeatherweightError, match="side by side"):
        draw_transform(apart, R, generator)
    assert draw_transform(Axis("x", "b", 3, ("c",)), R, generator).block == 3
    with pytest.raises(FeatherweightError, match="share a row"):
        draw_transform(Axis("x", "b", 2, ("c",), shared=(0, 0)), P, generator)
    with pytest.raises(FeatherweightError, match="no kind"):
        draw_transform(apart, "selection", generator)
