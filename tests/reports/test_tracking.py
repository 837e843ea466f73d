"""Tracking: what each library's own files hold afterwards, failures, missing libraries, runs that went on after a kill."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from pathlib import Path

import pytest

import featherweight as fw
from featherweight.cli.main import app
from featherweight.errors import FeatherweightError
from featherweight.models.source import resolve_model
from featherweight.reports.following import Follower
from featherweight.reports.tracking import LIBRARIES, Run, Tracking, metric_name

INSTALLED = [name for name, needs in LIBRARIES.items() if all(importlib.util.find_spec(each) for each in needs)]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed: pip install 'featherweight[{name}]'")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One compression, tracked by every installed library: `(folder of the tracking, output)`."""
    folder = tmp_path_factory.mktemp("tracked")
    words = ["compress", "demo", "-o", str(folder / "out"), "--samples", "4", "--length", "64"]
    words += ["--evaluate", "heldout", "--windows", "1"]
    app([*words, "--track", ",".join(INSTALLED), "--track-folder", str(folder / "kept"), "--offline"], standalone_mode=False)
    return folder / "kept", folder / "out"


def expected(output: Path) -> dict[str, dict[int, float]]:
    """Curves that the ledger's rows make."""
    curves: dict[str, dict[int, float]] = {}
    for row in json.loads((output / "ledger.json").read_text())["rows"]:
        if row["method"] and row["kind"] == "linear":
            block, role = int(row["module"].split(".")[2]), row["module"].split(".", 3)[3]
            curves.setdefault(f"{role}/error", {})[block] = row["relative_error"]
            curves.setdefault(f"{role}/bits", {})[block] = row["bits_per_weight"]
    return curves


def finals(output: Path) -> dict[str, float]:
    scores = json.loads((output / "evaluation.json").read_text())["heldout"]
    total = json.loads((output / "ledger.json").read_text())["total"]
    kept = {f"total/{name}": total[name] for name in ("linear_bits", "model_bits", "file_bytes")}
    return kept | {f"heldout/{each['name']}": each["value"] for each in scores}


@needs("tensorboard")
def test_tensorboard_reads_the_curves_back(tracked):
    folder, output = tracked
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "tensorboard").iterdir()
    read = EventAccumulator(str(run), size_guidance={"tensors": 0, "scalars": 0})
    read.Reload()
    for name, curve in expected(output).items():
        assert {each.step: each.value for each in read.Scalars(name)} == pytest.approx(curve, rel=1e-6)
    assert len(read.Scalars("block/error")) == len(read.Scalars("block/seconds")) == 4
    for name, value in finals(output).items():
        assert read.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)
    text = read.Tensors("settings/recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"samples": 4' in text and '"method": "gptq"' in text, "the recipe as it was run"
    fingerprint = json.loads((output / "ledger.json").read_text())["model"]["fingerprint"]
    assert fingerprint in read.Tensors("settings/model/text_summary")[0].tensor_proto.string_val[0].decode()


@needs("mlflow")
def test_mlflow_reads_the_curves_back(tracked):
    folder, output = tracked
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("featherweight").experiment_id])
    for name, curve in expected(output).items():
        assert {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)} == curve
    assert finals(output).items() <= run.data.metrics.items()
    assert run.info.status == "FINISHED" and run.info.run_name == "compress demo"
    assert run.data.params["recipe.steps.0.method"] == "gptq" and run.data.params["protocol.heldout/kl.windows"] == "1"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", "recipe.yaml", "plan.json", "ledger.json", "evaluation.json"}


@needs("wandb")
def test_wandb_offline_reads_the_curves_back(tracked):
    folder, output = tracked
    (run,) = (folder / "wandb").glob("offline-run-*")
    records = wandb_records(run)
    config = {each.key: json.loads(each.value_json) for record in records for each in record.run.config.update}
    config |= {each.key: json.loads(each.value_json) for record in records for each in record.config.update}
    assert config["recipe"]["steps"][0]["method"] == "gptq" and "heldout/kl" in config["protocol"]
    curves: dict[str, dict[int, float]] = {}
    for record in records:
        values = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for name, value in values.items():
            if "block" in values:
                curves.setdefault(name, {})[values["block"]] = value
    assert expected(output).items() <= curves.items()
    summary = {each.key: json.loads(each.value_json) for record in records for each in record.summary.update if each.key}
    assert finals(output).items() <= summary.items()
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert {"ledger.json", "plan.json", "evaluation.json"} <= {path.name for path in (run / "files").iterdir()}


def wandb_records(run: Path):
    """Records of a finished offline run, whose last its service writes after `finish` has returned."""
    for _ in range(200):
        records = list(parse_records(next(run.glob("*.wandb")).read_bytes()))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError("no exit record in 20 s")


def parse_records(data: bytes):
    """Protocol buffers of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, record = 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


@needs("mlflow")
def test_a_failed_run_is_marked_and_offline_wins_over_a_server(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    source = resolve_model("demo")
    for problem in (FeatherweightError("no space"), KeyboardInterrupt()):
        with pytest.raises(type(problem)), Tracking(["mlflow"], tmp_path, offline=True).run("compress", source, {}):
            raise problem
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    killed, failed = client.search_runs([client.get_experiment_by_name("featherweight").experiment_id])
    assert (killed.info.status, failed.info.status) == ("KILLED", "FAILED")
    assert failed.data.tags["error"] == "FeatherweightError: no space"


@needs("wandb")
def test_wandb_stays_offline_where_nobody_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError), Tracking(["wandb"], tmp_path).run("eval", resolve_model("demo"), {}):
        raise ValueError("broken")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [record.exit.exit_code for record in wandb_records(run) if record.HasField("exit")] == [1]


@pytest.mark.parametrize("verb", ["eval", "bench", "compare", "search"])
@needs("tensorboard")
def test_other_verbs_are_tracked_too(verb, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = {
        "eval": ["eval", "demo", "--length", "64", "--windows", "1"],
        "bench": ["bench", "demo", "--tokens", "2", "--context", "16", "--repeats", "1"],
        "compare": ["compare", "demo", "--recipes", "rtn-4bit", "--eval-length", "64", "--windows", "1", "-o", str(tmp_path / "c")],
        "search": ["search", "demo", "-r", "magnitude-50", "--maximize", "sparsity", "--subject-to", "kl(heldout) <= 1", "--range",
                   "0.2:0.9", "--tolerance", "1", "--eval-length", "64", "--windows", "1", "-o", str(tmp_path / "s")],
    }[verb]  # fmt: skip
    app([*words, "--track", "tensorboard", "--track-folder", str(tmp_path), "--json"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    read = EventAccumulator(str(next((tmp_path / "tensorboard").iterdir())))
    read.Reload()
    name, value = {
        "eval": lambda: ("heldout/perplexity", printed["measurements"][0]["value"]),
        "bench": lambda: ("batch 1 context 16/tokens_per_second", printed["timings"][0]["tokens_per_second"]),
        "compare": lambda: ("rtn-4bit/kl", {m["name"]: m["value"] for m in printed["models"][1]["measurements"]}["kl"]),
        "search": lambda: ("best/heldout/kl", printed["best"]["observed"][0]["value"]),
    }[verb]()
    assert read.Scalars(name)[0].value == pytest.approx(value, rel=1e-6)
    if verb == "search":
        trials = [(trial["value"], trial["holds"], trial["observed"][0]["value"]) for trial in printed["trials"]]
        for name, values in zip(("setting", "holds", "heldout/kl"), zip(*trials, strict=True), strict=True):
            assert [each.value for each in read.Scalars(name)] == pytest.approx(list(map(float, values)), rel=1e-6)
        assert [trial[1] for trial in trials] == [True, False], "the mild end holds, the harsh one does not"


def test_a_missing_library_is_an_error_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # a folder of that name is no library
    monkeypatch.syspath_prepend(str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "featherweight.reports.tracking.find_spec",
        lambda name: (
            None if name in ("tensorboard", "alembic") else found(name) if name != "wandb" else namespace(tmp_path / "wandb")
        ),
    )
    for name in LIBRARIES:
        with pytest.raises(FeatherweightError, match=rf"featherweight\[{name}\]"):
            app(["compress", "demo", "-o", "out", "--track", name], standalone_mode=False)
    with pytest.raises(FeatherweightError, match="mlflow"):
        app(["eval", "demo", "--track", "ml-flow"], standalone_mode=False)
    assert {path.name for path in tmp_path.iterdir()} == {"wandb"}


def namespace(folder: Path):
    spec = importlib.util.spec_from_loader(folder.name, None, is_package=True)
    spec.submodule_search_locations.append(str(folder))
    return spec


class Kept:
    """A tracker in memory."""

    place = "memory"

    def __init__(self):
        self.curves, self.numbers, self.closed = {}, {}, []

    def configure(self, settings):
        pass

    def point(self, axis, step, values):
        for name, value in values.items():
            self.curves.setdefault(name, {})[step] = value

    def totals(self, values):
        self.numbers.update(values)

    def attach(self, path):
        raise OSError("the server is gone")

    def close(self, failure):
        self.closed.append(failure)


def test_a_run_that_went_on_has_the_blocks_from_before_the_kill(tmp_path):
    plan = fw.plan("demo", "rtn-4bit")
    first, second, said = Kept(), Kept(), []

    def killed(event):
        if event.stage == "block written" and event.done == 2:
            raise KeyboardInterrupt

    def run_with(tracker):
        run = Run(said.append)
        run.trackers.append(tracker)
        return run

    with pytest.raises(KeyboardInterrupt):
        fw.compress(plan, tmp_path / "out", report=Follower(plan, run_with(first), killed))
    assert len(first.curves["mlp.up_proj/bits"]) == 2
    follower = Follower(plan, run_with(second))
    result = fw.compress(plan, tmp_path / "out", report=follower)
    follower.finish(result)
    rows = [row for row in result.rows if row.kind == "linear"]
    for place in range(4):
        block = [row for row in rows if row.block == f"model.layers.{place}"]
        assert second.curves["block/bits"][place] == pytest.approx(
            8 * sum(row.bytes for row in block) / sum(row.weights for row in block)
        )
        assert {f"{row.module.split('.', 3)[3]}/weight_error" for row in block} <= second.curves.keys()
    assert all(len(curve) == 4 for curve in second.curves.values())
    assert "block/error" not in second.curves, "rtn sees no activations"
    assert second.numbers["total/file_bytes"] == result.totals.file_bytes
    assert said == ["warning: tracking stopped, the run goes on (memory): the server is gone"]


def test_names_that_every_tracker_takes():
    assert metric_name("/data/my text.txt/kl") == "data/my text.txt/kl"
    assert metric_name("../a:b/kl") == "a_b/kl"
