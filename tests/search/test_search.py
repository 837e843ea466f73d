"""Searches on the embedded model: the answer really holds, nothing is done twice, impossible wishes are explained."""

import csv
import json
import shutil

import pytest

import featherweight as fw
from featherweight.errors import FeatherweightError
from featherweight.models.source import resolve_model
from featherweight.planning.recipe import load_recipe
from featherweight.search.cells import Cells
from featherweight.search.knobs import find_knob
from featherweight.search.search import search
from featherweight.search.trials import Measuring

SMALL = {"calibration.samples": 2, "calibration.length": 64}
QUICK = Measuring(windows=2, length=128, device="cpu")
TEXT = "perplexity(heldout) <= 1.3 * dense"


def magnitude(output, subject_to, goal="sparsity", **more):
    more = {"tolerance": 0.3, "how": QUICK, **more}
    return search(resolve_model("demo"), "magnitude-50", goal, subject_to, output, **more)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("search")
    return output, magnitude(output, [TEXT])


@pytest.fixture
def known(done, tmp_path):
    """A folder in which everything was measured, and no model is left."""
    (tmp_path / "known").mkdir()
    shutil.copy(done[0] / "cells.json", tmp_path / "known")
    return tmp_path / "known"


def test_the_answer_was_measured_to_hold_and_a_harsher_trial_to_fail(done):
    output, found = done
    seen = found.best.observed[0]
    assert found.best.holds and seen.value <= seen.limit
    assert any(trial.value > found.best.value and not trial.holds for trial in found.trials)
    again = fw.evaluate(output / "model", length=128, windows=2, device="cpu")
    dense = fw.evaluate("demo", length=128, windows=2, device="cpu")
    assert again[0].value == seen.value and seen.limit == pytest.approx(1.3 * dense[0].value)
    assert found.best.sparsity == pytest.approx(found.best.value, abs=1e-3)
    assert fw.verify(output / "model")
    assert not (output / "trials").exists()


def test_the_log_on_disk_is_the_log(done):
    output, found = done
    log = json.loads((output / "search.json").read_text())
    assert log["best"]["value"] == found.best.value and len(log["trials"]) == len(found.trials) == found.made
    rows = list(csv.DictReader((output / "trials.csv").open()))
    assert [float(row["steps.0.ratio"]) for row in rows] == [trial.value for trial in found.trials]


def test_a_second_call_makes_and_measures_nothing(done):
    output, found = done
    again = magnitude(output, [TEXT])
    assert (again.made, again.measured) == (0, 0)
    assert again.trials == found.trials and again.best == found.best


def test_another_bound_uses_what_is_known(done, known):
    found = magnitude(known, ["perplexity(heldout) <= 100 * dense", "bytes <= 7.5MB"], tolerance=0.5)
    assert found.measured == 0 and found.made == 1  # the answer alone is made again
    mild = found.trials[0]
    assert mild.value == 0 and mild.bytes > 7.5e6 and mild.unchecked == ("perplexity(heldout)",) and mild.sparsity is None
    assert found.best.bytes <= 7.5e6 and found.best.value == found.knob.harsh * (1 if found.trials[1].holds else 0.5)


def test_an_interrupted_search_goes_on(tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    ends = {"span": "0.2:0.4", "tolerance": 1}
    with pytest.raises(KeyboardInterrupt):
        magnitude(tmp_path / "out", ["kl(heldout) <= 100"], report=stop, **ends)
    found = magnitude(tmp_path / "out", ["kl(heldout) <= 100"], **ends)
    assert found.best.value == 0.4 and found.measured == 1 and len(found.trials) == 2


def test_what_cannot_be_met_names_the_closest(known):
    with pytest.raises(FeatherweightError, match="no setting meets") as problem:
        magnitude(known, ["perplexity(heldout) <= 0.5 * dense"])
    assert "steps.0.ratio=0" in problem.value.found and "beyond" in problem.value.found
    log = json.loads((known / "search.json").read_text())
    assert log["best"] is None and len(log["trials"]) == 1
    with pytest.raises(FeatherweightError, match="exclude each other"):
        magnitude(known, ["bytes <= 4MB", "perplexity(heldout) <= 1.01 * dense"], tolerance=0.5)
    with pytest.raises(FeatherweightError, match="harsher"):
        magnitude(known, ["bytes <= 1MB", "perplexity(heldout) <= 1.01 * dense"])


def test_what_is_not_finite_fails_and_is_valid_json(tmp_path, monkeypatch):
    from featherweight.search import trials

    monkeypatch.setattr(trials.Trials, "measure", lambda self, constraint, plan: (float("nan"), None))
    monkeypatch.setattr(trials.Trials, "made", lambda self, plan: {})
    with pytest.raises(FeatherweightError, match=r"nan at steps\.0\.ratio=0"):
        magnitude(tmp_path / "out", ["perplexity(heldout) <= 3"])
    assert "NaN" not in (text := (tmp_path / "out" / "search.json").read_text()) and json.loads(text)["best"] is None


def test_settings_out_of_order_are_told(tmp_path, monkeypatch):
    from featherweight.search import trials

    values = {0.0: 1.0, 0.9: 9.0, 0.45: 2.5, 0.675: 2.0}

    monkeypatch.setattr(
        trials.Trials, "measure", lambda self, constraint, plan: (values[plan.recipe.steps[0].settings["ratio"]], 2.0)
    )
    monkeypatch.setattr(trials.Trials, "made", lambda self, plan: self._noted(plan, {"sparsity": 0.5}))
    monkeypatch.setattr(trials.Trials, "keep", lambda self, plan: self.output)
    found = magnitude(tmp_path / "out", ["perplexity(heldout) <= 3"])
    assert found.best.value == 0.675
    assert "2.5 at 0.45, 2 at 0.675" in found.notes[0] and "one standard error" in found.notes[1]
    values |= {0.675: 2.75}
    assert len(magnitude(tmp_path / "again", ["perplexity(heldout) <= 3"]).notes) == 1


def test_whole_numbers_are_bisected_over_those_the_method_accepts(tmp_path):
    found = search(
        resolve_model("demo"), "rtn-4bit", "smallness", ["perplexity(heldout) <= 1.2 * dense"], tmp_path / "out", how=QUICK,
    )  # fmt: skip
    assert found.knob.values == (8, 6, 5, 4, 3, 2) and 2 < found.best.value < 8
    worse = [trial for trial in found.trials if trial.value == found.knob.values[found.knob.values.index(found.best.value) + 1]]
    assert worse and not worse[0].holds


def test_speed_and_memory_are_taken_in_a_process_of_their_own(tmp_path):
    how = Measuring(windows=2, length=128, context=16, device="cpu")
    found = magnitude(
        tmp_path / "out", ["peak-memory <= 4GiB", "tokens-per-second >= 0.001"], "tokens-per-second", how=how, span="0.5:0.5"
    )
    assert found.best.tokens_per_second > 0 and found.measured == 1
    assert 100e6 < found.best.observed[0].value < 4 * 2**30


@pytest.mark.parametrize(
    ("recipe", "goal", "path", "span", "says"),
    [
        ("sparsegpt-2of4", "sparsity", None, None, "2:4 is fixed"),
        ("gptq-4bit", "sparsity", None, None, "a step with a `ratio`"),
        ("sparsegpt-50", "sparsity", "steps.0.sparsity", None, "ratio"),
        ("sparsegpt-50", "sparsity", "ratio", None, "steps.N.SETTING"),
        ("sparsegpt-50", "sparsity", "steps.3.ratio", None, "steps.N.SETTING"),
        ("sparsegpt-50", "sparsity", "steps.0.pattern", "0:1", "no number"),
        ("sparsegpt-50", "sparsity", "steps.0.damping", None, "MILD:HARSH"),
        ("sparsegpt-50", "sparsity", None, "0-0.9", "0:0.9"),
        ("sparsegpt-50", "sparsity", None, "0:1.5", "1.5"),
        ("gptq-4bit", "smallness", None, "8:2.5", "whole"),
        ("gptq-4bit", "smallness", None, "12:14", "2, 3, 4, 5, 6, 8"),
        ("gptq-4bit", "speed", None, None, "tokens-per-second"),
        ("gptq-nvfp4", "smallness", None, None, "no setting to turn"),
    ],
)
def test_knobs_that_make_no_sense(recipe, goal, path, span, says):
    with pytest.raises(FeatherweightError) as problem:
        find_knob(load_recipe(recipe), goal, path, span, None)
    assert says in str(problem.value)


def test_knobs_of_themselves():
    def path(recipe, goal):
        return find_knob(load_recipe(recipe), goal, None, None, None).path

    assert path("joint-50-4bit", "sparsity") == "steps.0.ratio" and path("joint-50-4bit", "smallness") == "steps.0.bits"
    assert path("alps-2of4-4bit", "smallness") == "steps.1.bits" and path("sparsegpt-50", "smallness") == "steps.0.ratio"
    sliced = {"steps": [{"method": "gptq"}, {"method": "structured"}]}
    assert find_knob(load_recipe(sliced), "tokens-per-second", None, None, None).path == "steps.1.ratio"
    assert find_knob(load_recipe("gptq-4bit"), "smallness", None, "2:4", None).values == (4, 3, 2)


def test_wrong_wishes_leave_nothing_behind(tmp_path):
    for wish in ("accuracy(no-such-task) >= 0.5", "kl(no-such-text) <= 0.1", "bits <= x"):
        with pytest.raises(FeatherweightError):
            magnitude(tmp_path / "out", [wish])
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(FeatherweightError, match="something else"):
        magnitude(tmp_path / "mine", [TEXT])


def test_cells_are_made_once_and_kept(tmp_path):
    made = []
    for _ in range(2):
        cells = Cells(tmp_path / "deep" / "cells.json")
        assert cells.get({"b": 1, "a": [2]}, lambda: made.append(1) or {"value": (1, 2)}) == {"value": [1, 2]}
    assert len(made) == 1
    with pytest.raises(ZeroDivisionError):
        cells.get({"b": 2}, lambda: {"value": 1 / 0})
    assert len(json.loads((tmp_path / "deep" / "cells.json").read_text())) == 1
    (tmp_path / "deep" / "cells.json").write_text('{"a": 1}')
    with pytest.raises(FeatherweightError, match="made again"):
        Cells(tmp_path / "deep" / "cells.json")
