"""Cells: a result is made once, survives the process, and a broken file is said to be one."""

import pytest

from featherweight.errors import FeatherweightError
from featherweight.search.cells import Cells


def test_a_result_is_made_once_and_kept(tmp_path):
    path, made = tmp_path / "new" / "cells.json", []

    def make():
        made.append(None)
        return {"value": len(made)}

    cells = Cells(path)
    assert not path.exists()
    assert cells.get({"a": 1, "b": [2]}, make) == cells.get({"b": [2], "a": 1}, make) == {"value": 1}
    assert Cells(path).get({"a": 1, "b": [2]}, make) == {"value": 1}
    assert Cells(path).get({"a": 2, "b": [2]}, make) == {"value": 2}


def test_a_failure_keeps_nothing_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "cells.json"
    with pytest.raises(ZeroDivisionError):
        Cells(path).get({"a": 1}, lambda: {"value": 1 / 0})
    assert not path.exists()
    path.write_text("{")
    with pytest.raises(FeatherweightError, match=r"cells\.json"):
        Cells(path)
