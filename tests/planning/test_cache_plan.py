"""The section `kv_cache` from the recipe to the loaded model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import featherweight as fw
from common import OPT, TINY
from featherweight.errors import FeatherweightError
from featherweight.evaluation.timing import generate_eagerly
from featherweight.kv_cache import CompressedCache, attached

CACHE = {
    "keys": {"codec": "qjl", "group_size": 8, "window": 8}, "values": {"codec": "integer", "group_size": 16, "window": 4},
    "exact_first": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Nothing but a cache, on the OPT model: `(plan, folder)`."""
    folder = tmp_path_factory.mktemp("cache") / "out"
    plan = fw.plan(OPT, {"name": "cache", "kv_cache": CACHE})
    fw.compress(plan, folder)
    return plan, folder


def test_a_recipe_of_a_cache_alone_leaves_every_weight_as_it_is(output):
    plan, folder = output
    assert plan.totals.predicted_bytes == plan.totals.original_bytes and not plan.needs_data
    dense, loaded = fw.load(OPT, dtype=torch.float32), fw.load(folder, dtype=torch.float32)
    ours = loaded.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in dense.state_dict().items())
    assert fw.verify(folder)["proof"]["identical"]


def test_the_planned_bytes_are_those_that_the_cache_holds(output):
    plan, folder = output
    ids = torch.arange(4, 104)[None]
    for model in (fw.load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        cache = model.generate(
            ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True
        ).past_key_values
        assert isinstance(cache, CompressedCache) and cache.get_seq_length() == 103
        assert cache.nbytes == plan.cache.bytes_of(103) < cache.exact_nbytes == 103 * plan.cache.exact_token_bytes
        assert all(reads.coded_keys and reads.coded_values for reads in cache.reads)
    assert generate_eagerly(model, ids, 3)[2] == plan.cache.bytes_of(103)  # what `fw bench` reads in a step
    told = json.loads((folder / "plan.json").read_text())["kv_cache"]
    assert told["settings"] == attached(model).settings.as_dict() == plan.recipe.kv_cache
    assert told["token_bytes"] < told["exact_token_bytes"]


def test_another_projection_than_the_saved_one_is_refused(output, tmp_path):
    folder = tmp_path / "copy"
    fw.load(output[1]).save_pretrained(folder)
    assert attached(fw.load(folder)) is not None  # saved again by transformers, the section is still there
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["kv_cache"]["settings"]["seed"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FeatherweightError, match="saved projection does not match"):
        fw.load(folder)


def test_a_cache_does_not_change_what_a_run_without_one_is_known_by():
    without, with_cache = (
        fw.plan(OPT, "rtn-4bit", changes=TINY),
        fw.plan(OPT, "rtn-4bit", changes={**TINY, "kv_cache": "kivi-4"}),
    )
    assert "kv_cache" not in without.identity()["recipe"] and without.hash != with_cache.hash
    assert with_cache.recipe.kv_cache["keys"]["bits"] == 4 and without.totals == with_cache.totals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache": "kivi-5"}, "did you mean kivi-4"),
        ({"kv_cache.keys.codec": "qjl", "kv_cache.keys.sketch": 100}, "multiple of 32"),
        ({"kv_cache.values.codec": "qjl"}, "stores no values"),
        ({"kv_cache.keys.codec": "qjl", "kv_cache.keys.sketch": 32, "kv_cache.keys.outlier_sketch": 64}, "outlier_sketch"),
    ],
)
def test_what_the_cache_cannot_do_is_refused_by_the_plan(changes, words):
    with pytest.raises(FeatherweightError, match=words):
        fw.plan(OPT, "rtn-4bit", changes=changes)


def test_a_recipe_of_nothing_is_refused():
    with pytest.raises(FeatherweightError, match="steps or kv_cache"):
        fw.plan(OPT, {"name": "nothing"})
