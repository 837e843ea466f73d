"""What every format answers: which storages it can express, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.packed.base import PackedWeight


class Format(ABC):
    """A layout of checkpoints that other programs read.

    Attributes:
        name: as the user writes it.
        readers: programs that read it.
        linears_only: whether embeddings cannot be packed.
        experts: whether it holds mixtures of experts.
    """

    name: ClassVar[str]
    readers: ClassVar[str]
    linears_only: ClassVar[bool] = True
    experts: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """Why a module so stored cannot be expressed; None where it can, without loss."""

    def check_model(self, config: Any) -> None:  # noqa: B027
        """Raise FeatherweightError where the format has no place for a model of this transformers config; most have for all."""

    @abstractmethod
    def tensors(self, module: str, weight: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """The module's tensors by full name, in the format's layout.

        Args:
            dtype: of the checkpoint's other tensors.

        Raises:
            FeatherweightError: scales that the format would round.
        """

    @abstractmethod
    def section(self, modules: Mapping[str, Mapping[str, Any]], others: tuple[str, ...]) -> dict[str, Any] | None:
        """The `quantization_config`; None for none.

        Args:
            modules: descriptions by module.
            others: linears that are not packed.

        Raises:
            FeatherweightError: modules that the format cannot hold side by side.
        """
