"""`fw generate --kv-cache` and `fw chat`: the model's own cache or another, from a pipe, and as JSON."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

import featherweight as fw
from featherweight.cli import main as cli

LINE = "keys=integer:bits=4,axis=channel,group_size=8,window=8;values=integer:bits=4,window=4"


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def call(*words: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fw", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kept") / "out"
    codec = {"codec": "rotated", "window": 8}
    fw.compress(fw.plan("demo", {"name": "cache", "kv_cache": {"keys": codec, "values": codec}}), folder)
    return str(folder)


def test_generate_reads_through_the_cache_that_was_asked_for(verb, output: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("keys: {codec: qjl, group_size: 8, window: 8}")
    bits = {}
    for asked in (None, "none", "exact", LINE, str(path)):
        options = [] if asked is None else ["--kv-cache", asked]
        code, out, _ = verb("generate", output, "Once upon a time", "--tokens", "24", "--json", *options)
        told = json.loads(out)
        assert code == 0 and told["tokens"] == 24 and told["tokens_per_second"] > 0
        cache = told["cache"]
        bits[asked] = None if cache is None else 32 * cache["nbytes"] / cache["exact_nbytes"]
    assert bits["none"] is None and bits["exact"] == 32
    assert bits[None] < 20 and bits[LINE] < 20 and 16 < bits[str(path)] < 32


def test_generate_tells_its_cost_beside_the_text(verb, output: str) -> None:
    code, out, err = verb("generate", output, "Once upon a time", "--tokens", "20")
    assert code == 0 and out.startswith("Once upon a time")
    assert "20 made" in err and "in code" in err and "instead of" in err


def test_chat_takes_turns_from_a_pipe(verb, output: str) -> None:
    typed = "Who goes there?\n\n/help\nAnd who else?\n/reset\nWhat then?\n/quit\nnever said\n"
    code, out, err = verb("chat", output, "--tokens", "12", "--json", typed=typed)
    told = json.loads(out)
    assert code == 0 and [turn["user"] for turn in told["turns"]] == ["Who goes there?", "And who else?", "What then?"]
    assert told["cache"]["coded_nbytes"] > 0 and "/reset begins anew" in err
    again = json.loads(verb("chat", output, "--tokens", "12", "--json", typed="What then?\n")[1])
    assert again["turns"][0] == told["turns"][2]  # nothing is left of what came before /reset
    code, out, err = verb("chat", output, "--tokens", "12", typed="What then?")
    assert out.strip() == again["turns"][0]["assistant"] and "instead of" in err


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["generate", "demo", "Once", "--kv-cache", "kivi"], "no such cache preset"),
        (["chat", "demo", "--kv-cache", "keys=integer:bits=9"], "cannot store these bits"),
        (["chat", "demo", "--kv-cache", "values=qjl"], "stores no values"),
    ],
)
def test_codecs_that_cannot_be_are_refused(verb, words: list[str], wrong: str) -> None:
    code, out, _ = verb(*words, "--json")
    assert code == 2 and wrong in json.loads(out)["error"]


def test_a_turn_that_is_too_long_ends_a_pipe(verb) -> None:
    code, _, err = verb("chat", "demo", typed="word " * 3000)
    assert code == 2 and "exceed the model's context" in err
