"""Our GPTQ export in gptqmodel; runs where that is installed (an environment of its own: docs/export.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import featherweight as fw
from common import TINY
from featherweight import api


@pytest.mark.parametrize(
    "changes",
    [{}, {"symmetric": False}, {"bits": 8}, {"bits": 2, "symmetric": False}, {"group_size": 128, "order": "static"}],
)
@pytest.mark.parametrize("model", ["demo", str(Path(__file__).parents[1] / "assets" / "opt-5m")])
def test_it_repeats_our_logits_and_tokens(model: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gptqmodel")
    from transformers import AutoModelForCausalLM, GPTQConfig

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # it compiles every linear otherwise, for half a minute
    step = {"method": "gptq", "bits": 4, "group_size": 32, "symmetric": True, **changes}
    folder = fw.compress(fw.plan(model, {"name": "r", "steps": [step]}, changes=TINY), tmp_path / "out").folder
    done, ours = api.export(folder, "gptq", tmp_path / "gptq"), fw.load(folder, dtype=torch.float32)
    config = GPTQConfig(bits=step["bits"], backend="gptq_torch")  # for a CPU it would take a kernel that rounds to bfloat16
    theirs = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32, quantization_config=config)
    prompt = torch.arange(40, 72)[None]
    asked = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(theirs.generate(prompt, **asked), ours.generate(prompt, **asked))
    for module in ours.modules():
        if hasattr(module, "packed"):
            decoded = module.packed.dequantize().half().float()  # as its kernel decodes
            module.forward = lambda x, decoded=decoded, bias=module.bias: torch.nn.functional.linear(x, decoded, bias)
    with torch.no_grad():
        expected, found = (model(prompt, use_cache=False).logits for model in (ours, theirs))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
