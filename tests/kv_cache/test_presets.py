"""Settings by name, in a file, in a line."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheSettings
from featherweight.kv_cache.presets import PRESETS, read_settings


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_serves_usual_head_dimensions(name, head_dim):
    settings = read_settings(name, head_dim)
    for layer in (0, 31):
        for codec in settings.codecs(layer):
            codec.check(head_dim)
    assert CacheSettings.from_dict(settings.as_dict()) == settings


def test_qjl_is_the_authors_at_their_head_dimension():
    settings = read_settings("qjl", 128)
    first, other = settings.codecs(14)[0], settings.codecs(15)[0]
    assert (first.sketch, first.outlier_sketch, other.sketch, other.outlier_sketch) == (512, 128, 256, 256)
    assert (other.outliers, other.group_size, other.window, settings.values.bits) == (8, 32, 128, 2)


def test_a_line_a_file_and_a_mapping_say_the_same(tmp_path):
    told = {"keys": {"codec": "integer", "bits": 3, "axis": "channel"}, "seed": 4, "exact_first": 4}
    line = read_settings("keys=integer:bits=3,axis=channel; seed=4; exact_first=4", 64)
    path = tmp_path / "cache.yaml"
    path.write_text("kv_cache:\n  keys: {codec: integer, bits: 3, axis: channel}\n  seed: 4\n  exact_first: 4\n")
    assert line == read_settings(str(path), 64) == read_settings(told, 64)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("kivi2", "did you mean kivi-2"),
        ("keys=integr:bits=2", "did you mean integer"),
        ("keys=integer:bit=2", "did you mean bits"),
        ("keys=integer;values", "has no value"),
        ("no/such/file.yaml", "no settings of a cache"),
    ],
)
def test_what_cannot_be_read_is_refused(told, words):
    with pytest.raises(FeatherweightError, match=words):
        read_settings(told, 64)
