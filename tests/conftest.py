"""Shared models and runs; everything here comes from the repository, nothing from a network."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers, and what they start, would wait for one another's cores

import featherweight as fw
from common import SMALL


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def gptq_run(tmp_path_factory: pytest.TempPathFactory):
    """The embedded model by gptq-4bit: `(plan, result)`; read it, do not change it."""
    folder = tmp_path_factory.mktemp("gptq") / "out"
    plan = fw.plan("demo", "gptq-4bit", changes=SMALL)
    return plan, fw.compress(plan, folder, statistics=tmp_path_factory.mktemp("statistics"))
