"""Exported checkpoints, read by other libraries, against our own model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from common import SMALL
from featherweight import api
from featherweight.errors import FeatherweightError
from featherweight.export.int32 import words

RTN = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": True}


def compressed(folder: Path, *steps: dict[str, Any], **recipe: Any) -> Path:
    plan = fw.plan("demo", {"name": "r", "steps": list(steps), **recipe}, changes=SMALL)
    return Path(fw.compress(plan, folder).folder)


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("symmetric") / "out", RTN)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 104)[None], use_cache=False).logits


def greedy(model: Any) -> list[int]:
    return model.generate(torch.arange(40, 72)[None], max_new_tokens=16, do_sample=False)[0].tolist()


@pytest.mark.parametrize("name", ["compressed-tensors", "gguf", "dense"])
def test_transformers_reads_what_we_store(symmetric: Path, tmp_path: Path, name: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = api.export(symmetric, name, tmp_path / "out")
    ours = api.load(symmetric, dtype=torch.float32)
    file = {"gguf_file": "model.gguf"} if name == "gguf" else {}
    theirs = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32, **file).eval()
    difference = (logits(theirs) - logits(ours)).abs().max() / logits(ours).abs().max()
    assert difference < (1e-2 if name == "dense" else 1e-6)  # dense values are rounded to bfloat16
    assert greedy(theirs) == greedy(ours)
    text = "Once, in 1820, there was a town."
    assert (
        AutoTokenizer.from_pretrained(done.folder, **file)(text).input_ids
        == AutoTokenizer.from_pretrained(symmetric)(text).input_ids
    )


def test_a_mask_survives_as_zeros(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    folder = compressed(tmp_path / "out", {"method": "magnitude", "pattern": "2:4"}, RTN)
    done = api.export(folder, "compressed-tensors", tmp_path / "exported")
    ours, theirs = api.load(folder, dtype=torch.float32), AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)
    dropped = ~ours.model.layers[0].mlp.up_proj.packed.support
    assert (theirs.model.layers[0].mlp.up_proj.weight[dropped] == 0).all()
    assert any("zeros" in note for note in done.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bits": 8, "group_size": None},
        {"bits": 2, "symmetric": False},
        {"symmetric": False, "method": "gptq", "order": "static", "group_size": 128},
    ],
)
def test_gptq_layout_decodes_to_our_values(changes: dict[str, Any], tmp_path: Path):
    folder = compressed(tmp_path / "ours", RTN | changes)
    api.export(folder, "gptq", tmp_path / "out")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    symmetric, bits = section["sym"], section["bits"]
    assert section["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    stored = {key: tensor for file in (tmp_path / "out").glob("*.safetensors") for key, tensor in load_file(file).items()}
    name, largest = "model.layers.1.mlp.down_proj", 2**bits - 1
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (stored[f"{name}.qweight"][:, None, :] >> shifts[None, :, None] & largest).flatten(0, 1)  # [in, out]
    zeros = (stored[f"{name}.qzeros"][:, :, None] >> shifts & largest).flatten(1) + symmetric  # v1: one too small
    group = stored[f"{name}.g_idx"].long()
    values = stored[f"{name}.scales"].double()[group] * (codes - zeros[group])
    ours = api.load(folder).get_submodule(name).packed.dequantize()
    assert torch.equal(values.T.float(), ours)


def test_w8a8_differs_by_its_readers_steps_alone(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    step = {"method": "rtn", "bits": 8, "group_size": None, "symmetric": True, "scale_dtype": "bfloat16"}
    folder = compressed(tmp_path / "out", step, {"method": "round-input"})
    done = api.export(folder, "vllm", tmp_path / "exported")
    ours, theirs = api.load(folder, dtype=torch.float32), AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    assert (logits(ours).argmax(-1) == logits(theirs).argmax(-1)).float().mean() > 0.9

    def multiply(module: Any, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127.5  # theirs; ours is max / 127
        return (x / scale).round().clamp(-128, 127) * scale @ module.packed.dequantize().T

    for module in ours.modules():
        if hasattr(module, "packed"):
            module.forward = partial(multiply, module)
    assert (logits(ours) - logits(theirs)).abs().max() < 1e-5 * logits(theirs).abs().max()


def test_packed_zero_points_are_read(tmp_path: Path):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder = compressed(tmp_path / "out", RTN | {"symmetric": False})
    done = api.export(folder, "compressed-tensors", tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(
        done.folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    ours = api.load(folder, dtype=torch.float32)
    name = "model.layers.1.mlp.down_proj"
    decoded = ours.get_submodule(name).packed.dequantize()
    assert torch.equal(theirs.get_submodule(name).weight, decoded.half().float())  # decoded in the dtype of the scales
    assert (logits(ours) - logits(theirs)).abs().max() < 1e-3 * logits(ours).abs().max()


def test_words_hold_the_lowest_bits_first():
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]], dtype=torch.uint8)
    assert [hex(word & 0xFFFFFFFF) for word in words(codes, 4)[0].tolist()] == ["0x87654321", "0x9"]


@pytest.mark.parametrize(
    ("steps", "name", "reason"),
    [
        (({"method": "quip", "bits": 2},), "compressed-tensors", "rotated"),
        (({**RTN, "bits": 3},), "vllm", "3-bit"),
        (({**RTN, "bits": 2},), "vllm", "2-bit"),
        (({**RTN, "group_size": 64},), "gguf", "groups of 64"),
        (({**RTN, "symmetric": False},), "gguf", "asymmetric"),
        (({"method": "spqr"},), "gptq", "not as integer codes"),
        (({"method": "gptq", "order": "dynamic", "group_size": 32},), "gptq", "order in which columns"),
    ],
)
def test_a_plan_tells_what_a_format_cannot_express(steps: tuple[dict[str, Any], ...], name: str, reason: str):
    from featherweight.export.write import find_format, reasons

    plan = fw.plan("demo", {"name": "r", "steps": list(steps)}, changes=SMALL)
    found = reasons(find_format(name), [(row.module, row.description, row.kind) for row in plan.rows if row.description])
    assert any(reason in told for told in found), found


def test_errors_come_before_anything_is_written(symmetric: Path, tmp_path: Path):
    with pytest.raises(FeatherweightError, match="unknown format"):
        api.export(symmetric, "gguff", tmp_path / "a")
    with pytest.raises(FeatherweightError, match="nothing to export"):
        api.export(tmp_path, "dense", tmp_path / "a")
    mixed = compressed(tmp_path / "mixed", {**RTN, "scope": "*.mlp.*"})
    with pytest.raises(FeatherweightError, match="for all linears of the blocks"):
        api.export(mixed, "gptq", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    api.export(symmetric, "dense", tmp_path / "b")
    with pytest.raises(FeatherweightError, match="in use"):
        api.export(symmetric, "dense", tmp_path / "b")
    assert (tmp_path / "b" / "config.json").is_file()
