"""The tensors that a config describes, where there is no checkpoint: shapes and dtypes, no values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.models.weights import Weights, refuse_quantized, tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DescribedWeights(Weights):
    """Weights as a checkpoint of this config would hold them, all floating tensors in the skeleton's dtype.

    Raises:
        FeatherweightError: the config is of a checkpoint that is quantized already.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        refuse_quantized(folder, model.config)
        state = model.state_dict(keep_vars=True)
        names = tied_names(model)
        first = {alias: name for name, aliases in names.items() for alias in aliases}
        super().__init__(folder, {name: tuple(state[name].shape) for name in names}, {}, first)
        self._dtypes = {name: state[name].dtype for name in names}

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor; raises FeatherweightError for an unknown name."""
        return self._dtypes[self._listed(name)]

    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(torch.Size(self.shape(name)).numel() * dtype.itemsize for name, dtype in self._dtypes.items())

    def fingerprint(self) -> str:
        """sha256 over names, shapes and dtypes."""
        told = {name: [list(self.shape(name)), str(dtype)] for name, dtype in self._dtypes.items()}
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def read(self, name: str) -> Tensor:
        """Always raises FeatherweightError."""
        raise FeatherweightError(
            "there are no weights here, only a config", found=name, expected="a checkpoint", fix="download the whole model"
        )
