"""Speed: what is counted, percentiles, protocols, wrong input. No time is asserted, only what must hold of any."""

import json

import pytest
import torch

import featherweight as fw
from featherweight.cli.main import app
from featherweight.errors import FeatherweightError
from featherweight.evaluation import speed
from featherweight.evaluation.fastllama import fastllama_protocol
from featherweight.evaluation.speed import measure_speed, weight_bytes_read
from featherweight.evaluation.timing import Quantiles


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr(speed, "COPIED_ON_CPU", 2**20)


@pytest.fixture(scope="module")
def dense():
    return fw.load("demo", device="cpu")


def test_percentiles():
    quantiles = Quantiles.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (quantiles.low, quantiles.median, quantiles.high) == (2.0, 3.5, 5.0)


def test_a_step_reads_every_weight_once_and_an_untied_table_not(dense):
    tied = weight_bytes_read(dense)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in dense.parameters())
    assert parameters <= tied < parameters + 1024  # and the frequencies of the rotary embedding
    head = dense.lm_head.weight
    try:
        dense.lm_head.weight = torch.nn.Parameter(head.detach().clone())
        assert weight_bytes_read(dense) == tied  # the head's own copy, and not the table
    finally:
        dense.lm_head.weight = head


def test_timings_of_a_packed_model(gptq_run):
    model = fw.load(gptq_run[1].folder, device="cpu")
    result = measure_speed(model, batches=[1, 2], contexts=[8, 16], tokens=3, repeats=2)
    assert [(t["batch"], t["context"]) for t in result["timings"]] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert result["weight_bytes"] < weight_bytes_read(fw.load("demo", device="cpu"))
    text = model.config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    for timing in result["timings"]:
        decode = timing["decode"]
        assert 0 < decode["low"] <= decode["median"] <= decode["high"]
        assert timing["tokens_per_second"] == pytest.approx(timing["batch"] / decode["median"])
        kept = timing["batch"] * (timing["context"] + 3) * cache * itemsize
        assert timing["bytes_per_step"] == result["weight_bytes"] + kept
        fraction = timing["bytes_per_step"] / decode["median"] / result["copy_bytes_per_second"]
        assert timing["bandwidth_fraction"] == pytest.approx(fraction) and not timing["launch_bound"]


def test_the_seeds_protocol(dense):
    result = fastllama_protocol(dense, prompts=2, context=8, long=5)
    assert result["latency"]["median"] > 0 and result["tokens_per_second"]["median"] > 0 and result["peak_bytes"] > 0


@pytest.mark.parametrize("settings", [{"batches": [0]}, {"contexts": [4096]}, {"repeats": 0}])
def test_wrong_counts(dense, settings):
    with pytest.raises(FeatherweightError):
        measure_speed(dense, **settings)


def test_the_verb(gptq_run, capsys):
    app(
        ["bench", str(gptq_run[1].folder), "--context", "8", "--tokens", "2", "--repeats", "1", "--json"], standalone_mode=False
    )
    result = json.loads(capsys.readouterr().out)
    assert result["timings"] and all(any(k["runs"] for k in weight["kernels"]) for weight in result["kernels"])
    with pytest.raises(FeatherweightError, match="list of numbers"):
        app(["bench", "demo", "--batch", "two"], standalone_mode=False)
    with pytest.raises(FeatherweightError, match="offline"):
        app(["bench", "nowhere/at-all", "--offline"], standalone_mode=False)


def test_files_beside_the_json(capsys, tmp_path):
    words = ["--context", "8", "--tokens", "2", "--repeats", "1", "--json"]
    markdown, plot = tmp_path / "speed.md", tmp_path / "speed.html"
    app(["bench", "demo", *words, "--markdown", str(markdown), "--plot", str(plot)], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert f"{result['timings'][0]['tokens_per_second']:.1f}" in markdown.read_text() and plot.is_file()
    app(["bench", "demo", "--protocol", "fastllama", *words, "--markdown", str(markdown)], standalone_mode=False)
    assert "latency of one token" in markdown.read_text()
    with pytest.raises(FeatherweightError, match="one point"):
        app(["bench", "demo", "--protocol", "fastllama", "--plot", str(plot)], standalone_mode=False)
