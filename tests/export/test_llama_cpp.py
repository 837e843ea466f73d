"""Our GGUF export in llama.cpp; runs where `llama-cpp-python` is installed (an environment of its own: docs/export.md)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import featherweight as fw
from common import TINY
from featherweight import api

PROMPT = list(range(40, 72))


def exported(bits: int, tmp_path: Path) -> tuple[Any, Path]:
    """Our model in float32, and the file."""
    step = {"method": "gptq", "bits": bits, "group_size": 32, "symmetric": True}
    folder = fw.compress(fw.plan("demo", {"name": "r", "steps": [step]}, changes=TINY), tmp_path / "out").folder
    return fw.load(folder, dtype=torch.float32), api.export(folder, "gguf", tmp_path / "gguf").folder / "model.gguf"


@pytest.mark.parametrize("bits", [4, 8])
def test_its_own_decoder_gives_our_values(bits: int, tmp_path: Path):
    llama = pytest.importorskip("llama_cpp")
    import gguf

    ours, file = exported(bits, tmp_path)
    [library] = (Path(llama.__file__).parent / "lib").glob("libggml-base.so")
    decode = getattr(ctypes.CDLL(str(library)), f"dequantize_row_q{bits}_0")
    [tensor] = [found for found in gguf.GGUFReader(file).tensors if found.name == "blk.1.ffn_down.weight"]
    expected = ours.model.layers[1].mlp.down_proj.packed.dequantize().numpy()
    values, stored = numpy.empty(expected.size, numpy.float32), numpy.ascontiguousarray(tensor.data)
    decode(stored.ctypes.data_as(ctypes.c_void_p), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size))
    assert (values.reshape(expected.shape) == expected).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_it_agrees_as_far_as_8_bit_inputs_let_it(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    llama = pytest.importorskip("llama_cpp")
    plain = llama.llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False  # AMX's own layout of weights crashed where this was tried, on any file
    monkeypatch.setattr(llama.llama_cpp, "llama_model_default_params", lambda: plain)
    ours, file = exported(bits, tmp_path)
    with torch.no_grad():
        whole = ours.generate(torch.tensor([PROMPT]), max_new_tokens=32, do_sample=False, eos_token_id=-1)
        expected = ours(whole, use_cache=False).logits[0]
    theirs = llama.Llama(
        str(file), n_ctx=128, n_threads=1, logits_all=True, flash_attn=False, verbose=False, type_k=0, type_v=0
    )
    theirs.eval(whole[0].tolist())
    found = torch.from_numpy(numpy.array(theirs.scores[: whole.shape[1]]))
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9
    kl = torch.nn.functional.kl_div(found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    assert kl < 2e-3
