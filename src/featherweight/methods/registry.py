"""All methods by name, and how a recipe's step becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from featherweight.errors import FeatherweightError, nearest
from featherweight.methods.alps import ALPS
from featherweight.methods.awq import AWQ
from featherweight.methods.base import Method
from featherweight.methods.bawa import BaWA
from featherweight.methods.besa import BESA
from featherweight.methods.caldera import CALDERA
from featherweight.methods.clipping import Clip
from featherweight.methods.decompose import Decompose
from featherweight.methods.gptq import GPTQ
from featherweight.methods.imported import Imported
from featherweight.methods.jsq import JSQ
from featherweight.methods.low_rank import LowRankCorrection
from featherweight.methods.lplr import LPLR
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.pqp import PQP
from featherweight.methods.quip import QuIP
from featherweight.methods.repair import Repair
from featherweight.methods.ria import RIA
from featherweight.methods.round_input import RoundInput
from featherweight.methods.rtn import RTN
from featherweight.methods.saliency import Saliency
from featherweight.methods.smoothquant import SmoothQuant
from featherweight.methods.sparsegpt import SparseGPT
from featherweight.methods.spqr import SpQR
from featherweight.methods.structured import Structured
from featherweight.methods.wanda import Wanda

#: One line per method.
METHODS: dict[str, type[Method]] = {
    RTN.name: RTN,
    GPTQ.name: GPTQ,
    Clip.name: Clip,
    SpQR.name: SpQR,
    AWQ.name: AWQ,
    SmoothQuant.name: SmoothQuant,
    QuIP.name: QuIP,
    Magnitude.name: Magnitude,
    Wanda.name: Wanda,
    RIA.name: RIA,
    Saliency.name: Saliency,
    SparseGPT.name: SparseGPT,
    ALPS.name: ALPS,
    BaWA.name: BaWA,
    BESA.name: BESA,
    PQP.name: PQP,
    JSQ.name: JSQ,
    Repair.name: Repair,
    LPLR.name: LPLR,
    CALDERA.name: CALDERA,
    Decompose.name: Decompose,
    LowRankCorrection.name: LowRankCorrection,
    RoundInput.name: RoundInput,
    Structured.name: Structured,
    Imported.name: Imported,
}


def method_from(name: str, settings: Mapping[str, Any]) -> Method:
    """The method `name` with `settings`; what is left out keeps its default.

    Raises:
        FeatherweightError: an unknown method or setting (with the nearest names), or a value that the method refuses.
    """
    if name not in METHODS:
        raise FeatherweightError(
            "unknown method",
            found=name,
            expected=", ".join(METHODS),
            fix=f"did you mean {nearest(name, METHODS, 1)[0]}?",
        )
    known = [field.name for field in fields(METHODS[name])]
    for setting in settings:
        if setting not in known:
            raise FeatherweightError(
                f"{name} has no such setting",
                found=setting,
                expected=", ".join(known),
                fix=f"did you mean {nearest(setting, known, 1)[0]}?",
            )
    return _typed(name, METHODS[name].completed(settings))


def _typed(name: str, settings: Mapping[str, Any]) -> Method:
    """The method, with every value of the type that its field declares; "maybe" is no boolean, 2.5 no number of bits."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(METHODS[name]).validate_python(dict(settings), strict=False)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        default = next((field.default for field in fields(METHODS[name]) if field.name == place), None)
        unquoted = first["type"] == "string_type"
        raise FeatherweightError(
            f"{name}: {place}: {first['msg'].lower()}",
            found=repr(first.get("input")),
            fix=f'put it in quotes ({place}: "2:4"); YAML reads 2:4 as a number' if unquoted else f"leave it out for {default}",
        ) from None
