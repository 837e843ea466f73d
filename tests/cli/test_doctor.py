"""`fw doctor`: every storage is examined, a kernel that is wrong or missing is named, and the exit code follows."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch

from featherweight.cli import main as cli
from featherweight.engine import doctor
from featherweight.kernels.cpu import compiler, integer
from featherweight.packed.base import _KINDS


@pytest.fixture
def told(capsys, monkeypatch):
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fw", "doctor", "--device", "cpu", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().out

    return call


def test_every_storage_is_made_multiplied_and_right(told) -> None:
    code, out = told("--json")
    found = json.loads(out)
    assert (code, found["broken"], found["device"]) == (0, [], "cpu")
    assert found["environment"]["torch"] == torch.__version__.split("+")[0] or "+" in found["environment"]["torch"]
    storages = " ".join(row["storage"] for row in found["products"])
    unmade = {kind for kind in _KINDS if kind not in storages} - {"dense", "normal_float"}
    assert not unmade, "kinds that no form of the doctor makes"
    for row in found["products"]:
        assert (
            any(entry["runs"] for entry in row["kernels"])
            and row["error"] < 1e-4
            and all(entry["reason"] for entry in row["kernels"])
        )
    asked = {op for row in found["ops"] for op in row["ops"]}
    assert {"sweep_block", "int8_matmul", "cache_attention"} <= asked and not asked & set(doctor.PRODUCTS)


def test_no_compiler_is_a_reason_and_not_a_defect(told, monkeypatch) -> None:
    monkeypatch.setattr(compiler, "missing", lambda name: "no C compiler was found")
    code, out = told()
    assert code == 0 and "not  cpu: no C compiler was found" in out and "nothing is broken" in out


def test_a_wrong_product_is_broken(told, monkeypatch) -> None:
    if compiler.missing("integer"):
        pytest.skip(compiler.missing("integer"))
    monkeypatch.setattr(
        integer.IntegerProduct, "__call__", lambda self, x, bias=None: torch.zeros(*x.shape[:-1], self.weight.shape[0])
    )
    code, out = told()
    assert code == 1 and "the product is wrong: relative error 1.0e+00" in out
    assert out.splitlines()[-1].startswith("broken: 8-bit, 4-bit") and "2:4 masked" not in out.splitlines()[-1]


def test_a_kernel_that_fails_is_broken_and_the_others_are_still_examined(monkeypatch) -> None:
    def fail(weight, x):
        if weight.description()["kind"] == "masked":
            raise RuntimeError("no such symbol")
        warnings.warn("the cuda kernel is not used: it does not compile", RuntimeWarning, stacklevel=2)
        return 0.0

    monkeypatch.setattr(doctor, "_error", fail)
    rows = {row["form"]: row for row in doctor.examine(torch.device("cpu"))}
    assert rows["2:4 masked"]["problem"] == "RuntimeError: no such symbol"
    assert rows["4-bit"]["problem"] == "the cuda kernel is not used: it does not compile"
    assert all(row["broken"] for row in rows.values())
