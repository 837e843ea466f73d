"""What is told of speed: with graphs and without, as Markdown and as plots; no machine is timed here."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.reports.speed import check_plot, notes, speed_rows, write_markdown, write_plot


def timing(batch, context, decode, graph=None, note=""):
    quantiles = {"median": decode, "low": decode * 0.9, "high": decode * 1.1}
    return {
        "batch": batch, "context": context, "prefill": quantiles, "decode": quantiles, "tokens_per_second": batch / decode,
        "bytes_per_step": 6_400_000_000, "bandwidth_fraction": 0.05, "launch_bound": graph is not None, "peak_bytes": 2**33,
        "graph": graph and {"median": graph, "low": graph, "high": graph},
        "graph_tokens_per_second": graph and batch / graph, "graph_bandwidth_fraction": graph and 0.8, "graph_note": note,
        "graph_path": "fused" if graph else "", "graph_peak_bytes": graph and 2**34,
    }  # fmt: skip


def result(*timings):
    about = {"device": "a GPU", "dtype": "bfloat16", "copy_bytes_per_second": 4e12, "weight_bytes": 6.4e9}
    return {**about, "timings": list(timings)}


GRAPHED = result(timing(1, 128, 0.030, 0.002), timing(16, 128, 0.031, 0.003), timing(16, 2048, 0.04, note="it waits (x.py:3)"))


def test_columns_of_graphs_only_where_there_is_one():
    headings, rows = speed_rows(GRAPHED)
    assert all(len(row) == len(headings) for row in rows) and "graph tokens/s" in headings
    assert rows[0][headings.index("graph tokens/s")] == "500.0" and rows[2][headings.index("graph ms")] == ""
    assert rows[0][-1] == "waits for launches" and rows[2][-1] == ""
    assert notes(GRAPHED) == ["no CUDA graph at 16x2048: it waits (x.py:3)"]
    assert rows[0][headings.index("graph of")] == "fused step" and rows[0][headings.index("graph peak")] == "16.0 GiB"
    stock = result(timing(1, 8, 0.01, 0.002, note="no fused step: block 0 has other parts"))
    assert notes(stock) == ["a CUDA graph of another step: no fused step: block 0 has other parts"]
    alone = result(timing(1, 8, 0.01, note="there are none on a CPU"))
    assert "graph ms" not in speed_rows(alone)[0] and notes(alone) == ["no CUDA graph: there are none on a CPU"]


def test_files(tmp_path):
    write_markdown(tmp_path / "speed.md", "model", GRAPHED)
    lines = (tmp_path / "speed.md").read_text().splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1 and sum(line.startswith("|") for line in lines) == 5 and "it waits" in lines[-1]
    write_plot(tmp_path / "speed.html", "<model>", GRAPHED)
    page = (tmp_path / "speed.html").read_text()
    assert "&lt;model&gt;" in page and "context 128, graph" in page and "memory" in page and 'src="http' not in page
    pytest.importorskip("matplotlib")
    for name, start in (("speed.png", b"\x89PNG"), ("speed.svg", b"<?xml")):
        write_plot(tmp_path / name, "model", GRAPHED)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_a_plot_that_cannot_be_written_is_refused(tmp_path):
    check_plot(tmp_path / "a.html")
    with pytest.raises(FeatherweightError, match=r"\.html, \.png or \.svg"):
        check_plot(tmp_path / "a.pdf")
