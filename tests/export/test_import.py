"""Checkpoints of others, as our packed weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import featherweight as fw
from common import SMALL
from featherweight import api
from featherweight.errors import FeatherweightError
from featherweight.export.foreign import Foreign


def steps(**settings: object) -> dict[str, object]:
    return {"name": "r", "steps": [{"method": "rtn", "bits": 4, "group_size": 32, **settings}]}


@pytest.mark.parametrize(
    ("name", "symmetric"), [("gptq", True), ("gptq", False), ("compressed-tensors", True), ("compressed-tensors", False)]
)
def test_what_we_export_comes_back_bit_for_bit(tmp_path: Path, name: str, symmetric: bool):
    ours = fw.compress(fw.plan("demo", steps(symmetric=symmetric), changes=SMALL), tmp_path / "ours").folder
    api.export(ours, name, tmp_path / "theirs")
    back = api.import_checkpoint(tmp_path / "theirs", tmp_path / "back")
    assert back.proof["identical"]
    assert not (tmp_path / "back.dense").exists()
    first, second = api.load(ours), api.load(back.folder)
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"):
        one, other = first.get_submodule(module).packed, second.get_submodule(module).packed
        assert one.description() == other.description()
        assert all(torch.equal(tensor, other.tensors()[part]) for part, tensor in one.tensors().items())
    assert api.verify(back.folder)["proof"]["identical"]


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    """`[in, out]` codes as AWQ's words: nibble `i` of a word is column `(0, 2, 4, 6, 1, 3, 5, 7)[i]` of its eight."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for column in range(words.shape[1]):
        for nibble, place in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words[:, column] |= codes[:, 8 * column + place].long() << 4 * nibble
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def write(folder: Path, section: dict[str, object], tensors: dict[str, torch.Tensor]) -> Foreign:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": section}))
    save_file({f"m.{part}": tensor.contiguous() for part, tensor in tensors.items()}, folder / "model.safetensors")
    return Foreign.open(folder)


def test_awq_and_reordered_gptq_decode(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 16), generator=generator)  # [in, out]
    zeros = torch.randint(0, 16, (2, 16), generator=generator)
    scales = torch.rand(2, 16, generator=generator).half()
    awq = {"qweight": awq_words(codes), "qzeros": awq_words(zeros), "scales": scales}
    group = torch.arange(64) // 32
    found = write(tmp_path / "awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq).read("m")
    values = scales[group].float() * (codes - zeros[group])
    assert torch.equal(found.dequantize(), values.T)

    shifts = 4 * torch.arange(8)
    down = (codes.unflatten(0, (-1, 8)) << shifts[None, :, None]).sum(1)
    across = ((zeros - 1 & 15).unflatten(1, (-1, 8)) << shifts).sum(2)
    signed = [torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32) for words in (down, across)]
    order = torch.randperm(64, generator=generator)
    gptq = {"qweight": signed[0], "qzeros": signed[1], "scales": scales, "g_idx": group[order].to(torch.int32)}
    told = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    found = write(tmp_path / "gptq", told, gptq).read("m")
    assert torch.equal(found.dequantize(), (scales[group[order]].float() * (codes - zeros[group[order]])).T)
    with pytest.raises(FeatherweightError, match="not stored as"):
        write(tmp_path / "wrong", {**told, "desc_act": False}, gptq).read("m")


def test_a_low_rank_term_repairs_what_others_made(tmp_path: Path):
    ours = fw.compress(fw.plan("demo", steps(bits=2, symmetric=True), changes=SMALL), tmp_path / "ours").folder
    api.export(ours, "gptq", tmp_path / "theirs")
    first = {"method": "imported", "checkpoint": str(tmp_path / "theirs")}
    errors = {}
    term = {"method": "low-rank", "rank_bits": 0.3, "activation_aware": False}
    for name, chain in {"as it is": [first], "repaired": [first, term]}.items():
        result = fw.compress(fw.plan("demo", {"name": "r", "steps": chain}, changes=SMALL), tmp_path / name)
        errors[name] = [row.measured["relative_weight_error"] for row in result.rows if row.kind == "linear"]
    assert len(errors["repaired"]) == 28
    assert sum(errors["repaired"]) < 0.95 * sum(errors["as it is"])


def test_what_cannot_be_imported(tmp_path: Path):
    with pytest.raises(FeatherweightError, match="no quantized checkpoint"):
        Foreign.open(tmp_path)
    with pytest.raises(FeatherweightError, match="width"):
        write(tmp_path / "three", {"quant_method": "gptq", "bits": 3, "group_size": 32}, {"qweight": torch.zeros(1)})
    with pytest.raises(FeatherweightError, match="not imported"):
        write(tmp_path / "gemv", {"quant_method": "awq", "bits": 4, "version": "gemv"}, {"qweight": torch.zeros(1)})
    with pytest.raises(FeatherweightError, match="checkpoint"):
        fw.plan("demo", {"name": "r", "steps": [{"method": "imported"}]})
