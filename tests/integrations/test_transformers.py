"""Our folders in transformers: import order, dtypes, saving again, newer formats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featherweight as fw

_SCRIPT = """
import sys
{imports}
model = AutoModelForCausalLM.from_pretrained({folder!r})
print(type(model.model.layers[0].mlp.up_proj).__name__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import featherweight\nassert 'torch' not in sys.modules\nfrom transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM\nimport featherweight",
        "import transformers.quantizers\nfrom transformers import AutoModelForCausalLM\nimport featherweight",
    ],
)
def test_registration_in_any_import_order(imports: str, gptq_run) -> None:
    _, result = gptq_run
    script = _SCRIPT.format(imports=imports, folder=str(result.folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "PackedLinear", done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_dtypes_survive_loading_in_another_dtype(dtype: torch.dtype, gptq_run) -> None:
    _, result = gptq_run
    model = fw.load(result.folder, dtype=dtype)
    linear = model.model.layers[0].mlp.up_proj
    assert linear.scales.dtype == torch.float16 and linear.codes.dtype == torch.uint8
    assert model.model.norm.weight.dtype == dtype
    assert model(input_ids=torch.arange(8).unsqueeze(0)).logits.dtype == dtype
    assert torch.equal(linear.packed.dequantize(), fw.load(result.folder).model.layers[0].mlp.up_proj.packed.dequantize())


def test_saved_again_by_transformers_it_loads_again(gptq_run, tmp_path: Path) -> None:
    _, result = gptq_run
    tokens = torch.arange(1, 17).unsqueeze(0)
    model = fw.load(result.folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    again = fw.load(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(model(input_ids=tokens).logits, again(input_ids=tokens).logits)


def test_a_newer_format_is_refused(gptq_run, tmp_path: Path) -> None:
    _, result = gptq_run
    folder = Path(shutil.copytree(result.folder, tmp_path / "newer"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(fw.FeatherweightError, match="newer format"):
        fw.load(folder)


def test_an_unfinished_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{}")
    with pytest.raises(fw.FeatherweightError, match="unfinished"):
        fw.load(tmp_path)
