"""What the user writes: YAML or Python, checked here and nowhere else."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featherweight.errors import FeatherweightError, nearest


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(BaseModel):
    """One method and its settings; settings left out take the method's defaults."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the method's name."""
        return dict(self.model_extra or {})


class ScopedStep(Step):
    """A step of the recipe's own chain, and where it applies.

    Attributes:
        scope: "decoder" (the linears of the blocks), "head" (the output head), "all" (both), or a glob or list of globs over
            full module names. A tied head that a step applies to gets a weight of its own.
    """

    scope: str | Annotated[tuple[str, ...], Field(min_length=1)] = "decoder"


class Override(_Part):
    """Other settings for the linears whose name matches a glob.

    Attributes:
        match: globs over full module names; each must match something.
        skip: leave these linears as they are.
        settings: replace single settings in every step that has them.
        steps: replace the whole chain.
    """

    match: tuple[str, ...] = Field(min_length=1)
    skip: bool = False
    settings: dict[str, Any] = {}
    steps: tuple[Step, ...] | None = None

    @model_validator(mode="after")
    def _does_something(self) -> Override:
        if not (self.skip or self.settings or self.steps):
            raise ValueError("an override needs skip, settings or steps")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_glob(cls, values: Any) -> Any:
        return (
            {**values, "match": (values["match"],)}
            if isinstance(values, dict) and isinstance(values.get("match"), str)
            else values
        )


class Calibration(_Part):
    """Which tokens the statistics are gathered on.

    Attributes:
        source: corpus name or file, see `featherweight.data`.
        samples: windows.
        length: tokens of a window; None takes 2048 or the model's maximum, whichever is smaller.
        seed: of the window draw.
        variant: "standard" or "new" published rule of the corpus.
        batch_size: windows a forward pass; part of the result's identity, since sums round differently.
    """

    source: str = "sample"
    samples: int = Field(default=128, ge=1)
    length: int | None = Field(default=None, ge=2)
    seed: int = 0
    variant: Literal["standard", "new"] = "standard"
    batch_size: int = Field(default=4, ge=1)


class EngineSettings(_Part):
    """How the walk goes.

    Attributes:
        true_sequential: gather again inside a block after each axis is compressed.
        inputs: a block sees what the "compressed" or the "dense" blocks before it make.
        reference: what methods that learn are to match: what the dense "block" makes of those inputs, or what it makes in the
            "dense" model, which doubles the memory of activations.
        accumulate: dtype of the statistics' sums.
        compute: dtype in which blocks run; "auto" is float32 on a CPU and the checkpoint's elsewhere.
        expert_tokens: an expert that sees fewer tokens than this times its inputs is calibrated on all tokens of its block;
            with 0 only one that sees none.
        keep_statistics: of the "first" block, of "all", or "none", for the next run on the same model and data.
        activations: where the calibration's hidden states between two blocks lie: in "memory", or on the "disk" of the output.
    """

    true_sequential: bool = False
    inputs: Literal["compressed", "dense"] = "compressed"
    reference: Literal["block", "dense"] = "block"
    accumulate: Literal["float32", "float64"] = "float32"
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    expert_tokens: float = Field(default=1.0, ge=0)
    keep_statistics: Literal["first", "all", "none"] = "first"
    activations: Literal["memory", "disk"] = "memory"


#: Settings of the engine that change no bit of the output.
OUTSIDE_THE_RESULT = ("keep_statistics", "activations")


class Recipe(_Part):
    """Everything that decides the result, apart from the model and the tokens.

    Attributes:
        steps: the chain of methods, for every linear of every block unless a step's scope says otherwise.
        overrides: exceptions by glob; later ones win.
        embedding: a data-free method for the embedding; None leaves it alone.
        head: the head's first method; of a tied head, the same as `embedding`.
        kv_cache: how keys and values are stored while the output generates: a preset's name, or codecs of keys and values.
        seed: of the methods' own randomness.
    """

    name: str = "custom"
    description: str = ""
    source: str = ""
    steps: tuple[ScopedStep, ...] = ()
    overrides: tuple[Override, ...] = ()
    embedding: Step | None = None
    head: Step | None = None
    kv_cache: str | dict[str, Any] | None = None
    calibration: Calibration = Calibration()
    engine: EngineSettings = EngineSettings()
    seed: int = 0

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if not (self.steps or self.kv_cache):
            raise ValueError("a recipe needs steps or kv_cache")
        return self

    @field_validator("kv_cache")
    @classmethod
    def _is_a_cache(cls, told: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if told is not None:
            from featherweight.kv_cache.presets import read_settings

            read_settings(told, head_dim=128)  # what depends on the model is checked by the plan
        return told

    def as_dict(self) -> dict[str, Any]:
        """JSON form, defaults included."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as a file."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def with_changes(self, changes: dict[str, Any]) -> Recipe:
        """The recipe with dotted settings replaced: `{"calibration.samples": 32, "steps.0.bits": 3}`."""
        data = self.as_dict()
        for path in changes.keys() - Recipe.model_fields.keys():
            if "." not in path:
                raise FeatherweightError(
                    "no such setting", found=path, expected=", ".join(Recipe.model_fields),
                    fix=f"a method's own settings belong to its step: steps.0.{path}",
                )  # fmt: skip
        for path, value in changes.items():
            _assign(data, path, value)
        return _validated(data, self.name)


def shipped_recipes() -> dict[str, Path]:
    """File of every recipe that ships with the package, by name."""
    folder = Path(str(files("featherweight") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path | dict[str, Any] | Recipe) -> Recipe:
    """A recipe from a shipped name, a YAML file, a dictionary, or itself.

    Raises:
        FeatherweightError: no such recipe, unreadable YAML, or a setting that does not exist.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, dict):
        return _validated(recipe, str(recipe.get("name", "custom")))
    path = shipped_recipes().get(str(recipe), Path(recipe))
    if not path.is_file():
        names = shipped_recipes()
        raise FeatherweightError(
            "no such recipe",
            found=recipe,
            expected=f"a YAML file, or a shipped recipe: {', '.join(names)}",
            fix=f"did you mean {' or '.join(nearest(str(recipe), names, 2))}?",
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise FeatherweightError(
            "the recipe is not readable YAML", found=f"{path}: {problem}", expected="a YAML mapping"
        ) from None
    if not isinstance(data, dict):
        raise FeatherweightError("the recipe is no mapping", found=f"{path}: {type(data).__name__}", expected="`steps: [...]`")
    return _validated({"name": path.stem, **data}, path.name)


def _validated(data: dict[str, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        fix = ""
        if first["type"] == "extra_forbidden":
            fix = f"did you mean {' or '.join(nearest(str(first['loc'][-1]), _fields_at(first['loc']), 3))}?"
        raise FeatherweightError(
            f"recipe {name}: {place}: {first['msg'].lower()}",
            found=first.get("input"),
            expected="see `fw recipes --json`",
            fix=fix,
        ) from None


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {"calibration": Calibration, "engine": EngineSettings, "overrides": Override}
    return list(parts.get(str(location[0]) if len(location) > 1 else "", Recipe).model_fields)


def _assign(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = data
    for part in parents:
        key: Any = int(part) if isinstance(place, list) and part.isdigit() else part
        try:
            if isinstance(place, dict) and place.get(key, None if parents[0] == "kv_cache" else ...) is None:
                place[key] = {}
            place = place[key]
        except (KeyError, IndexError, TypeError):
            if isinstance(place, str):
                raise _settings_of_a_name(path, place) from None
            available = list(place) if isinstance(place, dict) else [str(index) for index in range(len(place))]
            raise FeatherweightError(
                "no such setting",
                found=path,
                expected=f"one of {', '.join(map(str, available))} at {part!r}",
                fix=f"did you mean {' or '.join(nearest(part, map(str, available), 2))}?",
            ) from None
    if isinstance(place, str):
        raise _settings_of_a_name(path, place)
    place[int(last) if isinstance(place, list) else last] = value


def _settings_of_a_name(path: str, name: str) -> FeatherweightError:
    return FeatherweightError(
        "a name has no settings to change", found=f"{path}, where the recipe says {name}", expected="settings written out",
        fix="--set 'kv_cache={keys: {codec: integer, bits: 4, axis: channel}}'",
    )  # fmt: skip
