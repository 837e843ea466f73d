"""Where steps apply: the decoder, the head, globs; what a tied head becomes when it gets a weight of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import featherweight as fw
from common import OPT
from featherweight import FeatherweightError
from featherweight.models.source import resolve_model
from featherweight.models.weights import open_weights
from featherweight.packed.files import sha256

CALIBRATION = {"samples": 4, "length": 64}
DROP = {"method": "structured", "ratio": 0.1}
MODELS = {"demo": ("model.embed_tokens", "lm_head"), str(OPT): ("model.decoder.embed_tokens", "lm_head")}


def recipe(*steps: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"name": "x", "steps": list(steps), "calibration": CALIBRATION, **sections}


def chains(plan: Any) -> dict[str, tuple[str, ...]]:
    return {row.module: row.chain for row in plan.rows if row.chain}


RTN4, RTN8 = {"method": "rtn", "bits": 4, "group_size": 32}, {"method": "rtn", "bits": 8, "group_size": None}
LOUD, GPTQ = {**DROP, "score": "activation"}, {"method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("model", "head"),
    [("demo", [DROP]), ("demo", [RTN4, DROP]), ("demo", [LOUD, GPTQ]), (str(OPT), [RTN8, {**DROP, "dimension": "output"}])],
    ids=["dense", "4-bit inputs", "activations", "OPT, 8-bit outputs"],
)
def test_a_tied_head_gets_a_weight_of_its_own(model: str, head: list[dict[str, Any]], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    embedding, name = MODELS[model]
    plan = fw.plan(model, recipe({"method": "rtn"}, *[{**step, "scope": "head"} for step in head]))
    row = plan.rows[-1]
    assert (row.module, row.kind, row.untied) == (name, "head", True) and embedding in row.reason
    assert row.chain == tuple(step["method"] for step in head)
    seen: list[Any] = []
    result = fw.compress(plan, tmp_path / "out", report=seen.append)
    assert any(event.stage == "note" and embedding in event.detail for event in seen)
    assert result.proof["identical"] and fw.verify(tmp_path / "out")["proof"]["identical"]
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("model-*")) == plan.totals.file_bytes
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not loaded.config.tie_word_embeddings
    table = loaded.get_input_embeddings().weight
    original = open_weights(resolve_model(model).folder, plan_skeleton(plan)).read(f"{embedding}.weight")
    assert torch.equal(table, original.float())
    loaded.save_pretrained(tmp_path / "again")
    tokens = torch.arange(1, 17).unsqueeze(0)
    assert torch.equal(loaded(tokens).logits, fw.load(tmp_path / "again", dtype=torch.float32)(tokens).logits)


def plan_skeleton(plan: Any) -> Any:
    from featherweight.models.skeleton import build_skeleton

    return build_skeleton(plan.source.config())


@pytest.mark.parametrize(("bits", "dimension"), [(None, "output"), (4, "input"), (8, "input")])
def test_the_shrunk_head_is_the_masked_head(bits: int | None, dimension: str, tmp_path: Path) -> None:
    before = [] if bits is None else [{"method": "rtn", "bits": bits, "group_size": 64, "scope": "head"}]
    values = {}
    for name, steps in (("whole", before), ("shrunk", [*before, {**DROP, "dimension": dimension, "scope": "head"}])):
        fw.compress(fw.plan("demo", recipe({"method": "rtn"}, *steps)), tmp_path / name)
        head = fw.load(tmp_path / name, dtype=torch.float32).lm_head
        values[name] = head.packed.dequantize() if hasattr(head, "packed") else head.weight.detach()
    side = 0 if dimension == "output" else 1
    norms = values["whole"].abs().sum(1 - side)
    left = len(norms) - int(len(norms) * 0.1)
    kept = torch.zeros_like(norms, dtype=torch.bool)
    kept[norms.argsort(descending=True, stable=True)[:left]] = True
    assert torch.equal(values["shrunk"], values["whole"] * (kept[:, None] if side == 0 else kept))


def test_an_embedding_of_its_own_beside_an_untied_head(tmp_path: Path) -> None:
    sections = {"embedding": {"method": "rtn", "bits": 8, "group_size": 64}, "head": {"method": "rtn", "bits": 4}}
    plan = fw.plan("demo", recipe({"method": "rtn"}, {**DROP, "scope": "head"}, **sections))
    assert chains(plan)["model.embed_tokens"] == ("rtn",) and chains(plan)["lm_head"] == ("rtn", "structured")
    result = fw.compress(plan, tmp_path / "out")
    assert result.proof["identical"] and fw.verify(tmp_path / "out")["proof"]["identical"]


def test_scopes_choose_linears() -> None:
    both = chains(fw.plan("demo", recipe({"method": "rtn", "scope": "all"})))
    decoder = chains(fw.plan("demo", recipe({"method": "rtn"})))
    assert both.keys() - decoder.keys() == {"lm_head"} and len(decoder) == 28
    some = chains(fw.plan("demo", recipe({"method": "rtn", "scope": ["*.q_proj", "lm_*"]}, {**DROP, "scope": "*.0.*"})))
    assert some["lm_head"] == ("rtn",) and some["model.layers.1.self_attn.q_proj"] == ("rtn",)
    assert some["model.layers.0.self_attn.q_proj"] == ("rtn", "structured") and len(some) == 4 + 7 - 1 + 1
    plan = fw.plan("demo", recipe({"method": "rtn", "scope": "head"}))
    assert {row.reason for row in plan.rows if row.module.endswith("up_proj.weight")} == {"in the scope of no step"}
    changed = recipe({"method": "rtn", "scope": "all"}, overrides=[{"match": "lm_head", "settings": {"bits": 8}}])
    assert fw.plan("demo", changed).rows[-1].description["bits"] == 8
    assert not fw.plan("demo", {**changed, "overrides": [{"match": "lm_head", "skip": True}]}).untied


def test_the_untied_head_adds_no_original_weights() -> None:
    tied = fw.plan("demo", recipe({"method": "rtn"})).totals
    untied = fw.plan("demo", recipe({"method": "rtn"}, {"method": "structured", "ratio": 0.0, "scope": "head"})).totals
    assert untied.original_bytes == tied.original_bytes
    head = 4096 * 256 * 2
    assert untied.predicted_bytes == tied.predicted_bytes + head
    assert untied.model_bits == pytest.approx(8 * untied.predicted_bytes / (8 * tied.predicted_bytes / tied.model_bits))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"scope": "haed"}, "head"),
        ({"scope": "*.q_prj"}, "q_proj"),
        ({"scope": ["head", "*.nothing"]}, "nothing"),
        ({"scope": []}, "scope"),
        ({"scope": 3}, "scope"),
    ],
)
def test_wrong_scopes_are_explained(step: dict[str, Any], says: str) -> None:
    with pytest.raises(FeatherweightError) as problem:
        fw.plan("demo", recipe({"method": "rtn", **step}))
    assert says in str(problem.value)


def test_a_scope_belongs_to_the_recipes_own_steps() -> None:
    for section in (
        {"head": {"method": "rtn", "scope": "head"}},
        {"overrides": [{"match": "*", "steps": [{**DROP, "scope": "all"}]}]},
    ):
        with pytest.raises(FeatherweightError, match="scope"):
            fw.plan("demo", recipe({"method": "rtn"}, **section))


class Killed(Exception):
    pass


def test_a_run_killed_at_the_head_goes_on_bit_identically(tmp_path: Path) -> None:
    plan = fw.plan("demo", recipe({"method": "gptq", "bits": 4, "scope": ["*.o_proj", "lm_head"]}))
    fw.compress(plan, tmp_path / "whole", statistics=tmp_path / "statistics")

    def kill(event: Any) -> None:
        if event.stage == "compressed" and event.linear == "lm_head":
            raise Killed

    with pytest.raises(Killed):
        fw.compress(plan, tmp_path / "out", report=kill)
    assert fw.compress(plan, tmp_path / "out").resumed == 5
    hashes = [{path.name: sha256(path) for path in (tmp_path / name).glob("model-*")} for name in ("whole", "out")]
    assert hashes[0] == hashes[1]


def test_what_another_output_wrote_alike_is_taken_over(tmp_path: Path) -> None:
    gptq = {"method": "gptq", "bits": 4, "scope": "*.o_proj"}
    fw.compress(fw.plan("demo", recipe(gptq)), tmp_path / "donor")
    for steps, borrowed in (((gptq, {**DROP, "scope": "head"}), 5), (({**gptq, "bits": 3},), 1)):
        plan = fw.plan("demo", recipe(*steps))
        alone, lent = tmp_path / f"alone{borrowed}", tmp_path / f"lent{borrowed}"
        fw.compress(plan, alone)
        assert fw.compress(plan, lent, donors=[tmp_path / "donor"]).resumed == borrowed
        for path in alone.glob("model-*"):
            assert sha256(path) == sha256(lent / path.name)
        assert json.loads((lent / "ledger.json").read_text())["proof"]["identical"]
