"""`fw layers`: single linears by several chains, without a model written."""

import json

import pytest

from common import TINY
from featherweight import FeatherweightError
from featherweight.cli.main import app
from featherweight.engine.layers import Candidate, Sharing, try_layers
from featherweight.models.source import resolve_model

QUICK = {"rank": 4, "iterations": 2, "grid": "uniform", "hadamard": False, "factor_iterations": 1}


def test_every_candidate_on_every_linear(tmp_path):
    from featherweight.methods.caldera import CALDERA

    candidates = [Candidate.of("rtn-4bit"), Candidate("caldera", 4, (CALDERA(**QUICK),))]
    assert Candidate.of("gptq-2bit-low-rank", 3).chain[1].rank == 3 and not candidates[0].has_rank
    tried = try_layers(
        resolve_model("demo"), ["*.0.self_attn.k_proj", "*.1.self_attn.o_proj"], candidates, changes=TINY, statistics=tmp_path
    )
    assert [(each.linear.split(".")[2], each.candidate) for each in tried] == [
        ("0", "rtn-4bit"), ("0", "caldera"), ("1", "rtn-4bit"), ("1", "caldera"),
    ]  # fmt: skip
    for each in tried:
        assert 0 < each.error < 1 and 2 < each.bits < 5
        assert each.error == pytest.approx(min(each.path), rel=1e-2) and len(each.path) == (2 if each.rank else 1)


def test_from_the_command_line_with_a_page(tmp_path, capsys):
    words = ["layers", "demo", "--linears", "*.0.self_attn.k_proj", "--methods", "rtn,lplr", "--ranks", "2,4"]
    app([*words, "--samples", "2", "--length", "32", "-o", str(tmp_path), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "layers.json").read_text())
    assert [each["candidate"] for each in told["attempts"]] == ["rtn", "lplr rank 2", "lplr rank 4"]
    assert told["attempts"][2]["error"] < told["attempts"][1]["error"]
    page = (tmp_path / "layers.html").read_text()
    assert page.count("lplr rank 4") >= 2 and "<h1>demo: linears by chain</h1>" in page


def test_one_matrix_for_several_linears_stores_less_and_errs_more(tmp_path):
    tried = try_layers(
        resolve_model("demo"),
        ["*.0.mlp.*"],
        [Candidate.of("rtn-4bit")],
        changes=TINY,
        statistics=tmp_path,
        sharing=[Sharing(4, 8)],
    )
    shared, own = (
        [each for each in tried if "for 2" in each.candidate],
        [each for each in tried if each.candidate == "rtn-4bit"],
    )
    assert [each.linear.split(".")[-1] for each in shared] == ["gate_proj", "up_proj"] and len(own) == 3
    rows, columns = resolve_model("demo").config().intermediate_size, resolve_model("demo").config().hidden_size
    assert all(each.bits == pytest.approx(4.25 / 2 + 16 * 8 * (1 / rows + 1 / columns)) for each in shared)
    assert all(own[0].error < each.error == min(each.path) < 1 and len(each.path) > 1 for each in shared)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--linears", "*.nothing", "--methods", "rtn"], "matches no linear"),
        (["--linears", "*.0.*", "--methods", "rtm"], "rtn"),
        (["--linears", "*.0.*", "--methods", "besa-50-row"], "more than single linears"),
        (["--linears", "*.0.*", "--methods", "lplr", "--ranks", "four"], "--ranks 16,64"),
        (["--linears", "*.0.*", "--methods", "rtn", "--shared-q", "two"], "--shared-q 2,4"),
        (["--linears", "*.nothing", "--methods", "rtn", "--shared-q", "9"], "2 to 8"),
        (["--linears", "*.0.self_attn.k_proj", "--methods", "lplr", "--ranks", "600"], "use at most 128"),
    ],
)
def test_errors(words, says):
    with pytest.raises(FeatherweightError, match=says):
        app(["layers", "demo", *words, "--samples", "2", "--length", "32"], standalone_mode=False)
