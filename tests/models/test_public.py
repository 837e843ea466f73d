from __future__ import annotations

import subprocess
import sys

import featherweight.models


def test_every_public_name_loads():
    assert set(featherweight.models.__all__) == set(featherweight.models._HOME)
    for name in featherweight.models.__all__:
        assert getattr(featherweight.models, name) is not None


def test_sources_and_structures_import_no_transformers():
    code = "import sys, featherweight.models.source, featherweight.models.axes; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_public_name_is_also_a_file():
    assert not set(featherweight.models.__all__) & set(featherweight.models._HOMES)
