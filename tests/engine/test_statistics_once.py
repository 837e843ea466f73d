"""Statistics gathered before any method serve every run over dense inputs, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

import featherweight as fw
from common import OPT, TINY
from featherweight import FeatherweightError
from featherweight.engine.progress import Event
from featherweight.engine.statistics import gather_statistics
from featherweight.packed.files import sha256

DENSE = {**TINY, "engine.inputs": "dense"}


def test_gathered_once_they_serve_every_method(tmp_path: Path) -> None:
    plan = fw.plan("demo", "gptq-4bit", changes=DENSE)
    kept = gather_statistics(plan, statistics=tmp_path / "kept")
    assert sum(entry.bytes for entry in kept) <= sum(path.stat().st_size for path in (tmp_path / "kept").iterdir())
    assert len(kept) == 4 * 4 and all(entry.tokens == 8 * 64 for entry in kept)
    for recipe in ("gptq-4bit", "wanda-50"):
        seen: list[Event] = []
        for name in ("kept", "fresh"):
            plan = fw.plan("demo", recipe, changes=DENSE)
            out = tmp_path / recipe / name
            fw.compress(plan, out, statistics=tmp_path / name / (recipe if name == "fresh" else ""), report=seen.append)
        shards = [[sha256(path) for path in sorted((tmp_path / recipe / name).glob("model-*"))] for name in ("kept", "fresh")]
        assert shards[0] == shards[1]
        assert sum(event.stage == "statistics reused" for event in seen) == 4


def test_the_embedding_counts_as_what_was_compressed_before(tmp_path: Path) -> None:
    gather_statistics(fw.plan("demo", "gptq-4bit", changes=DENSE), statistics=tmp_path / "kept")
    seen: list[Event] = []
    rounded = fw.plan("demo", "gptq-4bit", changes={**DENSE, "embedding": {"method": "rtn", "bits": 8}})
    fw.compress(rounded, tmp_path / "out", statistics=tmp_path / "kept", report=seen.append)
    assert not any(event.stage == "statistics reused" for event in seen)


def test_unknown_statistics_and_compressed_inputs_are_refused(tmp_path: Path) -> None:
    plan = fw.plan("demo", "gptq-4bit", changes=DENSE)
    with pytest.raises(FeatherweightError, match="no such statistics"):
        gather_statistics(plan, needs=frozenset({"hessians"}), statistics=tmp_path)
    with pytest.raises(FeatherweightError, match="no such statistics"):
        gather_statistics(fw.plan("demo", "gptq-4bit", changes=TINY), statistics=tmp_path)


def test_a_hessian_of_another_model_or_dtype_is_never_used(tmp_path: Path) -> None:
    gather_statistics(fw.plan("demo", "gptq-4bit", changes=DENSE), statistics=tmp_path / "kept")
    others = [("demo", {"engine.compute": "bfloat16"}), (OPT, {}), ("demo", {"calibration.seed": 1})]
    for number, (model, changes) in enumerate(others):
        seen: list[Event] = []
        plan = fw.plan(model, "gptq-4bit", changes={**DENSE, **changes})
        fw.compress(plan, tmp_path / str(number), statistics=tmp_path / "kept", report=seen.append)
        assert not any(event.stage == "statistics reused" for event in seen), (model, changes)
