"""What every table has: lines (recipes), measures taken of each, cells that are kept by all they were made from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.engine.save import LEDGER, read_ledger
from featherweight.errors import FeatherweightError
from featherweight.models.source import ModelSource
from featherweight.packed.files import sha256
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import Recipe
from featherweight.search.cells import Cells
from featherweight.version import __version__


@dataclass(frozen=True)
class Line:
    """A row of a table: a model made by a recipe, or the dense one.

    Attributes:
        name: as the table calls it; its folder's name begins so.
        recipe: None for the dense model.
    """

    name: str
    recipe: Recipe | None


@dataclass(frozen=True)
class Measure:
    """Something measured of a finished model folder.

    Attributes:
        name: of the cell.
        settings: everything the result depends on besides the folder; JSON.
        run: from the folder to a JSON object.
    """

    name: str
    settings: dict[str, Any]
    run: Callable[[Path], dict[str, Any]]


@dataclass
class Workshop:
    """Makes and measures the lines of one model.

    Attributes:
        source: the dense model.
        output: of the table; models lie in `output/MODEL/LINE-HASH`, finished cells in `output/cells.json`.
        cells: finished measurements.
        device: "cpu", "cuda", ... for compressing.
        offline, report: as in `compare`.
    """

    source: ModelSource
    output: Path
    cells: Cells
    device: str = "cpu"
    offline: bool = False
    report: Callable[[str], None] = lambda line: None
    _plans: dict[str, Plan] = field(default_factory=dict)
    _in_parts: set[Path] = field(default_factory=set)

    @property
    def place(self) -> Path:
        """Where the model's lines lie."""
        return self.output / re.sub(r"[^\w.-]+", "-", Path(self.source.name).name)

    def plan(self, recipe: Recipe) -> Plan:
        """What a recipe does to this model; made once."""
        key = recipe.to_yaml()
        if key not in self._plans:
            self._plans[key] = api.plan(self.source, recipe, offline=self.offline)
        return self._plans[key]

    def folder(self, line: Line) -> Path:
        """The finished output of a line, made now if it is not there; the dense model's own folder.

        Files that another finished line has alike are not computed again.
        """
        if line.recipe is None:
            return self.source.folder
        plan = self.plan(line.recipe)
        folder = self.place / f"{re.sub(r'[^a-zA-Z0-9_.-]+', '-', line.name)}-{plan.hash[:6]}"
        if not (folder / LEDGER).is_file():
            self.report(f"{self.source.name}: compressing {line.name}")
        donors = [path.parent for path in sorted(self.place.glob(f"*/{LEDGER}")) if path.parent != folder]
        result = api.compress(plan, folder, device=self.device, offline=self.offline, donors=donors)
        if result.seconds and result.resumed > 1:  # the first file holds nothing that is compressed here
            self._in_parts.add(folder)
        return folder

    def get(self, line: Line, measure: Measure, *, keep: bool = True) -> dict[str, Any]:
        """A measure of a line, taken now unless it is known; without `keep` a model made for it is deleted then."""

        def take() -> dict[str, Any]:
            folder = self.folder(line)
            self.report(f"{self.source.name}: {measure.name} of {line.name}")
            taken = measure.run(folder)
            if not keep and line.recipe is not None:
                shutil.rmtree(folder)
            return taken

        made_from = {
            **self._identity(line.recipe),
            "measure": measure.name,
            "settings": measure.settings,
            "device": self.device,
            "featherweight": __version__,
        }
        return self.cells.get(made_from, take)

    def size(self, line: Line) -> dict[str, Any]:
        """`bits_per_weight` of compressed weights, `model_bits_per_weight`, `file_bytes`, `seconds` of compressing.

        No seconds of the dense model, of one that a run did not make from start to end, and of one with files of another.
        """
        return self.get(line, Measure("size", {}, self._size))

    def _size(self, folder: Path) -> dict[str, Any]:
        if folder == self.source.folder:
            plan = self.plan(_ANY)
            bits = plan.original_bits
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            return {"bits_per_weight": bits, "model_bits_per_weight": bits, "file_bytes": size, "seconds": None}
        ledger = read_ledger(folder)
        total = ledger["total"]
        return {
            "bits_per_weight": total["linear_bits"],
            "model_bits_per_weight": total["model_bits"],
            "file_bytes": total["file_bytes"],
            "seconds": None if folder in self._in_parts else ledger["seconds"],
        }

    def _identity(self, recipe: Recipe | None) -> dict[str, Any]:
        plan = self.plan(recipe or _ANY)
        if recipe is None:
            return {"model": plan.fingerprint}
        text = Path(plan.recipe.calibration.source)
        return {**plan.identity(), "text": sha256(text) if plan.needs_data and text.is_file() else None}


#: Any recipe that suits every model: a plan of it knows the model.
_ANY = Recipe.model_validate({"steps": [{"method": "rtn"}]})


def require_models(sources: Sequence[ModelSource]) -> None:
    """Names under which models are kept must differ.

    Raises:
        FeatherweightError: two models of one name.
    """
    names = [Path(source.name).name for source in sources]
    if len(set(names)) < len(names):
        raise FeatherweightError("two models have one name", found=", ".join(names), expected="names that differ")
