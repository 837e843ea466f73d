"""SparseQJL's table on the embedded model: four rows of two models, both caches, resuming, the seed's flags."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheSettings
from featherweight.models.source import resolve_model
from featherweight.search.tables.sparseqjl import CacheFlags, Settings, sparseqjl_table

TINY = {"calibration.samples": 2, "calibration.length": 64, "calibration.batch_size": 1}


def test_rows_both_caches_and_going_on(tmp_path):
    asked = {"texts": ("heldout",), "windows": 1, "length": 160, "context": 1000, "changes": TINY}
    settings = Settings(**asked, tasks=("recall:copy",), examples=1, cache=CacheFlags(buffer_size=64))
    said: list[str] = []
    sheets, paths = sparseqjl_table([resolve_model("demo")], tmp_path, settings, report=said.append)
    dense, qjl, sparse, both = sheets[0].records
    assert [record["row"] for record in (dense, qjl, sparse, both)] == ["dense", "QJL", "SparseGPT", "SparseQJL"]
    assert dense["exact"] == qjl["exact"] and sparse["exact"] == both["exact"] and "coded" not in dense
    through = {row["row"]: row["coded"]["heldout"] for row in (qjl, both)}
    assert through["QJL"]["perplexity"]["protocol"]["cache"].startswith("keys qjl")
    assert dense["exact"]["heldout"]["perplexity"]["protocol"]["cache"] == "none"
    assert 0 < through["QJL"]["kl"]["value"] < sparse["exact"]["heldout"]["kl"]["value"]
    assert dense["bits_per_weight"] == qjl["bits_per_weight"] == 16 and both["bits_per_weight"] == pytest.approx(9)
    # 4 layers, 2 heads of 64, bf16: 960 of 1000 keys and 936 values in code
    key, value = 256 + 64 + 2 * 16 + 8 * 8 / 32, 2 * 64 + 2 * 2 * 16
    exact = 16 * 64 * ((1000 - 960) + 64)
    assert qjl["cache_bytes"] == pytest.approx(4 * 2 * (960 * key + 936 * value + exact) / 8)
    assert dense["cache_bytes"] == 4 * 2 * 64 * 2 * 2 * 1000
    assert set(both["coded"]["tasks"]) == {"recall_copy", "recall_copy_relative"}
    assert "through QJL" in paths[0].read_text()
    before = len(said)
    again, _ = sparseqjl_table([resolve_model("demo")], tmp_path, settings, report=said.append)
    assert again[0].records == sheets[0].records and len(said) == before


def test_the_seeds_flags_one_for_one():
    told = CacheSettings.from_dict(CacheFlags().settings(128))
    general, values = told.codecs(15)
    first, _ = told.codecs(14)
    assert (general.sketch, general.outlier_sketch, general.outliers, general.group_size, general.window) == (
        256,
        256,
        8,
        32,
        128,
    )
    assert (first.sketch, first.outlier_sketch, first.outliers, told.seed) == (512, 128, 8, 42)
    assert (values.name, values.bits, values.group_size, values.window) == ("integer", 2, 32, 128)
    assert CacheFlags().settings(64)["keys"]["sketch"] == CacheFlags(qjl_ratio=0.5).settings(64)["keys"]["sketch"] == 128
    assert CacheFlags(qjl_ratio=0.5).settings(128) == CacheFlags().settings(128)
    assert CacheFlags(qjl_ratio=0.25).settings(128)["keys"]["outlier_sketch"] == 128


def test_errors(tmp_path):
    with pytest.raises(FeatherweightError, match="nothing to measure on"):
        Settings(texts=())
    with pytest.raises(FeatherweightError, match="qjl_ratio"):
        CacheFlags(qjl_ratio=2).settings(64)
    with pytest.raises(FeatherweightError, match="no such recall task"):
        sparseqjl_table([resolve_model("demo")], tmp_path, Settings(texts=("heldout",), tasks=("recall:cop",)))
