"""GGUF files, converted once into a safetensors folder in the cache."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from featherweight.errors import FeatherweightError
from featherweight.models.cache import cache_folder, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert_gguf(path: Path) -> Path:
    """The checkpoint folder made from a GGUF file; made on first use, found by the file's sha256 afterwards.

    transformers dequantizes the file to float32; it is stored as float16 if every value stays finite there, else as float32.
    The folder appears in one step, so an interrupted conversion leaves nothing behind that looks finished.

    Raises:
        FeatherweightError: the `gguf` package is missing, or transformers cannot read the file.
    """
    target = cache_folder() / "gguf" / file_digest(path)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="converting-", dir=target.parent))
    try:
        _convert(path, scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise FeatherweightError(
            f"reading {path.name} needs the gguf package",
            found=str(error).strip().splitlines()[0],
            fix="pip install 'featherweight[formats]'",
        ) from error
    except Exception as error:  # the parser raises whatever a damaged file makes it stumble over
        raise FeatherweightError(
            f"transformers cannot convert {path}",
            found=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            expected="a GGUF file of an architecture that transformers reads",
            fix="use the model's safetensors instead",
        ) from error
    _forget_quantization(model)
    if _fits_half(model):
        model = model.to(torch.float16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: PreTrainedModel) -> None:
    """The values are plain floating point now; a config that says otherwise would be believed on loading."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None


def _fits_half(model: PreTrainedModel) -> bool:
    return all(bool(torch.isfinite(tensor.to(torch.float16)).all()) for tensor in model.parameters())
