"""A method: a pure function from the linears that share one input to one packed weight each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.block_run import BlockRun
from featherweight.models.axis import DIAGONAL
from featherweight.models.transforms import Transform
from featherweight.packed.base import PackedWeight
from featherweight.statistics.inputs import InputStatistics

#: Steps of a recipe as plain settings, `{"method": ..., setting: value}`.
Steps = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Problem:
    """One axis to compress.

    Attributes:
        weights: reference `W [out, in]` in float32, by linear.
        current: what each linear is stored as so far; `Dense(W)` at the first step.
        statistics: of the axis's input; None where no step needs any.
        dtype: the checkpoint's floating dtype, in which scales and dense values are stored.
        seed: of the run; `generator(name)` derives one stream per (seed, step, name).
        step: index of this step in the chain.
        settings: what the method's `tune` found, by linear.
        shared: for `prepare`, where the map will be folded: for each column a number that columns have in common which one
            row makes (grouped-query heads); a permutation must move them alike. None where every column is free.
        groups: for `prepare`, where the map will be folded: for each column its attention head, which a permutation must not
            leave. None where there is one group.
    """

    weights: Mapping[str, Tensor]
    current: Mapping[str, PackedWeight]
    statistics: InputStatistics | None
    dtype: torch.dtype
    seed: int = 0
    step: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator that depends on the seed, the step and the linear's name only."""
        import hashlib

        digest = hashlib.sha256(f"{self.seed}/{self.step}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def hessian(self, method: str, without_data: str) -> tuple[Tensor, int]:
        """Mean of `x xᵀ [in, in]`, float32 on the weights' device, and the tokens behind it.

        Args:
            method: that asks, for the error.
            without_data: a method that would do without, for the error.

        Raises:
            FeatherweightError: no statistics of this input.
        """
        statistics = self.calibrated("Hessian", method, without_data)
        device = next(iter(self.weights.values())).device
        return statistics.mean_hessian().to(device, torch.float32), statistics.count

    def input_rms(self, method: str, without_data: str) -> Tensor:
        """`√E[x_j²] [in]`, float32 on the weights' device; arguments and error as in `hessian`."""
        statistics = self.calibrated("activation norms", method, without_data)
        return statistics.mean_sum_sq().sqrt().to(next(iter(self.weights.values())).device, torch.float32)

    def calibrated(self, what: str, method: str, without_data: str) -> InputStatistics:
        """The statistics, or an error that says `what` of them `method` lacks; arguments as in `hessian`."""
        if self.statistics is None:
            raise FeatherweightError(
                f"{method} has no {what} for {' and '.join(self.current)}",
                found="no statistics of this input",
                expected="a calibration run",
                fix=f"give the recipe calibration data, or use method: {without_data}",
            )
        return self.statistics


@dataclass(frozen=True)
class Compressed:
    """A linear after a step: its packed weight, and what the ledger should know (damping, which solver won, ...)."""

    weight: PackedWeight
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(ABC):
    """Settings are the frozen dataclass's fields, with their defaults; checked in `__post_init__`.

    Class attributes:
        name: as written in a recipe.
        summary: one line for `fw methods`.
        source: paper and equation.
        needs: the statistics to gather: "sum_sq", "hessian", "abs_max".
        map_kind: of what `prepare` returns: "diagonal", "permutation" or "orthogonal"; the plan decides by it what can be folded.
        points: where `fw compare --sweep` shows the method, from 2 to 8 bits: label to steps; a step that names no method is
            of this one.
        adds_terms: whether a step adds terms to what is stored, which itself stays bit for bit; zeros then may get values.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    map_kind: ClassVar[str] = DIAGONAL
    points: ClassVar[Mapping[str, Steps]] = {"default": ({},)}
    adds_terms: ClassVar[bool] = False

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """`settings` as a recipe gives them, with those filled in that follow from others."""
        return settings

    @property
    def requires(self) -> frozenset[str]:
        """The statistics that these settings need; `needs`, unless a method overrides it."""
        return self.needs

    @property
    def exact(self) -> bool:
        """Whether `storage` is exactly what `compress` will return, or only a bound on its bytes."""
        return True

    @property
    def budget(self) -> Literal["linear", "block"]:
        """Whether `storage` holds for each linear, or for all linears of a block together, of which it gives an even share."""
        return "linear"

    @property
    def prepares(self) -> bool:
        """Whether `prepare` must run before `tune` and `compress`."""
        return False

    def prepare(self, problem: Problem) -> Transform | None:
        """One map of the problem's input, `x` to `T x`, after which `tune` and `compress` see `W T⁻¹`; None leaves it as it is.

        The problem holds all linears of one input that share this step, in order of execution of the inputs. Where the plan
        says so, the map is folded into what makes the input (a norm, or rows of linears that are still dense); else it
        is stored beside each weight (`Rotated`), the identity for None. A diagonal is the engine's to fit: columns that
        one row makes (`problem.shared`) get the geometric mean of their factors, and factors are those that the stored dtype
        has. A permutation that will be folded must respect `problem.shared` and `problem.groups`.
        """
        return None

    @property
    def tunes(self) -> bool:
        """Whether `tune` must run before `compress`."""
        return False

    def tune(self, run: BlockRun) -> Mapping[str, Any]:
        """Settings by linear, found on the block's outputs; `compress` gets them as `problem.settings`.

        Where the method `tunes_norms`, new weights of these too, by parameter name.
        """
        return {}

    @property
    def tunes_norms(self) -> bool:
        """Whether `tune` changes the block's norms."""
        return False

    @abstractmethod
    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """Description of the packed weight this step makes of one described `current`; no data is read.

        The plan's bytes come from it, and the engine checks that `compress` returns exactly this; of a method that is not
        `exact`, the same kind and shape in at most these bytes; of one with a block's budget, as many bytes in sum.
        """

    @abstractmethod
    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """One compressed weight for each linear of the problem."""
