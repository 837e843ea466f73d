"""The command line: the JSON contract, exit codes, streams, and how fast it says hello."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import featherweight as fw
from common import SMALL
from featherweight.cli import main as cli


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fw", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def fw_call(capsys, monkeypatch):
    return lambda *words: call(capsys, monkeypatch, *words)


def test_help_and_import_load_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, featherweight, featherweight.cli.main as m\n"
        "try:\n    m.app(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pydantic', 'yaml'} & sys.modules.keys(), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "plan", "compress", "verify", "eval", "generate", "fetch", "methods", "recipes", "explain"):
        assert verb in done.stdout


def test_plan_json(fw_call) -> None:
    code, out, _ = fw_call("plan", "demo", "--recipe", "gptq-4bit", "--samples", "4", "--json")
    plan = json.loads(out)
    assert code == 0
    columns = {
        "module",
        "method",
        "storage",
        "predicted_bytes",
        "stored_bytes",
        "bits_per_weight",
        "sparsity",
        "relative_error",
        "seconds",
    }
    assert all(columns <= row.keys() for row in plan["rows"])
    assert plan["total"]["file_bytes"] > 0 and plan["estimate"]["host_bytes"] > 0


def test_compress_verify_eval_generate_explain(fw_call, tmp_path: Path) -> None:
    out_folder = str(tmp_path / "out")
    small = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    code, out, _ = fw_call("compress", "demo", "-r", "gptq-4bit", "-o", out_folder, *small, "--json")
    assert code == 0 and json.loads(out)["proof"]["identical"]
    code, out, _ = fw_call("verify", out_folder, "--json")
    assert code == 0 and json.loads(out)["proof"]["identical"]
    code, out, _ = fw_call("eval", out_folder, "--against", "demo", "--length", "128", "--windows", "4", "--json")
    measured = {entry["name"]: entry for entry in json.loads(out)["measurements"]}
    assert code == 0 and {"perplexity", "kl", "top1_agreement"} <= measured.keys()
    assert 0 < measured["kl"]["value"] < 0.2 and measured["kl"]["stderr"] > 0 and measured["kl"]["protocol"]
    code, out, _ = fw_call("generate", out_folder, "Once upon a time", "--tokens", "5", "--json")
    assert code == 0 and json.loads(out)["text"]
    code, out, _ = fw_call("explain", out_folder, "--json")
    assert code == 0 and any(kernel["runs"] for weight in json.loads(out)["weights"] for kernel in weight["kernels"])
    assert json.loads(out)["decode_step"] == {"path": "fused", "reason": "one CUDA graph a token"}


def test_compress_scores_in_the_same_command(fw_call, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The captain looked at the sea, and the sea looked back at him. " * 400)
    words = ("compress", "demo", "-r", "spqr-4bit", "-o", str(tmp_path / "out"), "--samples", "2", "--length", "64")
    code, out, _ = fw_call(*words, "--evaluate", "heldout,no-such-text", "--windows", "1", "--json")
    assert code == 2 and "no-such-text" in json.loads(out)["found"] and not (tmp_path / "out").exists()
    code, out, _ = fw_call(*words, "--evaluate", f"heldout,{text}", "--windows", "1", "--json")
    result = json.loads(out)
    assert code == 0 and result["evaluation"].keys() == {"heldout", str(text)}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result["evaluation"]
    assert {"perplexity", "kl"} <= {each["name"] for each in result["evaluation"]["heldout"]}
    total = result["total"]
    assert 4.6 < total["nominal_bits"] < total["linear_bits"]  # what the paper counts, what is stored
    linear = next(row for row in result["rows"] if row["method"])
    assert sum(linear["component_bits"].values()) == pytest.approx(linear["bits_per_weight"])


def test_dense_model_is_evaluated_too(fw_call) -> None:
    code, out, _ = fw_call("eval", "demo", "--length", "128", "--windows", "2", "--json")
    assert code == 0 and json.loads(out)["measurements"][0]["name"] == "perplexity"


def test_methods_and_recipes(fw_call) -> None:
    _, out, _ = fw_call("methods", "--json")
    assert {"rtn", "gptq"} <= {method["name"] for method in json.loads(out)["methods"]}
    _, out, _ = fw_call("recipes", "--json")
    listed = json.loads(out)
    assert {"gptq-8bit", "gptq-4bit", "gptq-3bit-g128", "gptq-2bit", "rtn-8bit", "rtn-4bit"} <= listed["recipes"].keys()
    assert listed["schema"]["properties"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "demo", "--recipe", "gptq-4bits"), "gptq-4bit"),
        (("plan", "nowhere/at-all", "--offline"), "nowhere/at-all"),
        (("plan", "demo", "--set", "steps.0.bit=3"), "bits"),
        (("plan", "demo", "--set", "steps.0.bits=9"), "9"),
        (("plan", "demo", "--set", "calibratoin.samples=3"), "calibration"),
        (("compress", "demo", "-o", "unused", "--calibration", "no-such-corpus", "--offline"), "no-such-corpus"),
        (("compress", "demo", "-o", "unused", "--length", "4096"), "2048"),
        (("compress", "demo", "-o", "unused", "--device", "gpu"), "cpu"),
        (("verify", "."), "fw compress"),
        (("eval", "demo", "--data", "no-such-file.txt", "--offline"), "no-such-file.txt"),
        (("eval", "demo", "--against", "nowhere/at-all", "--offline"), "offline"),
        (("explain", "."), "fw compress"),
    ],
)
def test_wrong_input_is_explained_with_exit_code_2(fw_call, words, says, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = fw_call(*words, "--json")
    problem = json.loads(out)
    assert code == 2 and set(problem) == {"error", "found", "expected", "fix"}
    assert says in " ".join(problem.values())
    code, out, err = fw_call(*words)
    assert code == 2 and out == "" and err.startswith("error: ")
    assert not (tmp_path / "unused").exists(), "nothing is made before the input is checked"


def test_wrong_options_keep_the_json_contract(fw_call) -> None:
    code, out, _ = fw_call("compress", "demo", "-o", "unused", "--samples", "0", "--json")
    assert code == 2 and "samples" in json.loads(out)["error"]
    code, out, err = fw_call("compress", "demo", "--samples", "0")
    assert code == 2 and out == "" and "samples" in err


def test_a_pattern_that_matches_nothing_names_the_nearest(tmp_path: Path) -> None:
    recipe = {"steps": [{"method": "rtn"}], "overrides": [{"match": "*.qproj", "skip": True}]}
    with pytest.raises(fw.FeatherweightError, match="q_proj"):
        fw.plan("demo", recipe)
