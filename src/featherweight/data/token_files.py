"""Token ids from files: no tokenizer needed, but they fit one tokenizer only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from featherweight.data.readers import existing_file
from featherweight.errors import FeatherweightError

TOKEN_SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")


def read_samples(path: Path) -> tuple[Tensor, ...]:
    """The samples of a token file, each `[tokens]` int64.

    `.npy`: one integer array, 1-D (one sample) or 2-D (a row each). `.safetensors`: one integer tensor likewise.
    `.pt`, `.pth`: a tensor, or a list of tensors `[tokens]` or `[1, tokens]`, as SpQR's RedPajama sample; read with
    `weights_only=True`, so that no code in the file runs.

    Raises:
        FeatherweightError: missing, unreadable, no integers, more than two dimensions, or nothing inside.
    """
    existing_file(path)
    try:
        found = _loaded(path)
    except FeatherweightError:
        raise
    except Exception as error:  # numpy, pickle, zip and safetensors each raise their own
        raise FeatherweightError(
            f"{path.name} cannot be read as token ids",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="plain integer tensors",
            fix="save it again with torch.save([tensor, …], path), numpy.save or safetensors.torch.save_file",
        ) from error
    tensors = list(found) if isinstance(found, (list, tuple)) else [found]
    samples = [row for index, tensor in enumerate(tensors) for row in _rows(tensor, path, index)]
    if not any(sample.numel() for sample in samples):
        raise FeatherweightError(f"{path.name} is empty", found=f"{len(samples)} samples of 0 tokens", expected="token ids")
    return tuple(samples)


def _loaded(path: Path) -> Tensor | Sequence[object]:
    if path.suffix == ".npy":
        import numpy

        array = numpy.load(path, allow_pickle=False)
        if not numpy.issubdtype(array.dtype, numpy.integer):
            raise FeatherweightError(f"{path.name} holds no token ids", found=array.dtype, expected="an integer array")
        return torch.from_numpy(array.astype("int64"))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = {name: tensor for name, tensor in load_file(path).items() if not tensor.is_floating_point()}
        if len(tensors) != 1:
            raise FeatherweightError(
                f"{path.name} must hold one integer tensor", found=", ".join(tensors) or "none", expected="one, of any name"
            )
        return next(iter(tensors.values()))
    return torch.load(path, map_location="cpu", weights_only=True)


def _rows(value: object, path: Path, index: int) -> list[Tensor]:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex() and value.dim() in (1, 2)
    if not whole or value.dtype == torch.bool:  # type: ignore[attr-defined]
        shape = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FeatherweightError(
            f"{path.name}: entry {index} is no row of token ids",
            found=shape,
            expected="integers, [tokens] or [samples, tokens]",
        )
    assert isinstance(value, Tensor)
    return list(torch.atleast_2d(value).to(torch.int64).unbind(0))
