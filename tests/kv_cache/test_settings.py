"""The section `kv_cache:`: what it says, and what it refuses."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheSettings


def test_settings_survive_the_round_trip_with_their_first_layers():
    told = {"keys": {"codec": "exact"}, "first_layers": 2, "first_values": {"codec": "exact"}, "exact_first": 4, "seed": 7}
    settings = CacheSettings.from_dict(told)
    assert CacheSettings.from_dict(settings.as_dict()) == settings
    assert settings.generator(3).initial_seed() != settings.generator(4).initial_seed()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"key": {"codec": "exact"}}, "no such setting"),
        ({"keys": {"codec": "exakt"}}, "did you mean exact"),
        ({"keys": {"codec": "exact", "bits": 4}}, "has no such setting"),
        ({"first_keys": {"codec": "exact"}}, "there are none"),
        ({"first_layers": -1}, "negative"),
        ({"exact_first": -1}, "exact_first is negative"),
        ({"exact_first": "four"}, "exact_first has another type"),
        ({"first_layers": "two"}, "first_layers has another type"),
        ({"seed": None}, "a whole number"),
        ({"keys": "integer"}, "{codec: integer}"),
        ({"keys": {"codec": "integer", "bits": 4.0}}, "integer: bits has another type"),
        ({"keys": {"codec": "integer", "window": True}}, "a whole number"),
        ({"keys": {"codec": "qjl", "ratio": "half"}}, "a number"),
        ({"keys": {"codec": "rotated", "balance": 1}}, "true or false"),
    ],
)
def test_what_cannot_be_is_refused(told, words):
    with pytest.raises(FeatherweightError, match=words):
        CacheSettings.from_dict(told)
