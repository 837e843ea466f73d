"""Where a model comes from: a folder, a GGUF file, a packaged model, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError, nearest
from featherweight.models.shards import fingerprint, model_shards

_PACKAGED = {"demo": "llama-4m", "llama-4m": "llama-4m"}
_FETCHED = {"smollm2-135m": "smollm2-135m", "smollm2": "smollm2-135m"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.safetensors.index.json")
_FALLBACK_LENGTH = 2048  # tokens, for models whose config states no longest position

#: Asks the user a question, with its consequences; True means yes.
Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint folder, and the name it was asked for by.

    Attributes:
        name: as the user wrote it.
        folder: local folder with config.json and safetensors.
    """

    name: str
    folder: Path

    def config(self) -> Any:
        """The transformers config.

        Raises:
            FeatherweightError: config.json is not readable, or of a model type that transformers does not know.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            raise FeatherweightError(
                f"transformers cannot read {self.folder / 'config.json'}",
                found=str(error).splitlines()[0][:300],
                expected="the config of a model that transformers has code for",
                fix="update transformers; models that bring their own code are not run",
            ) from error

    def tokenizer(self) -> Any:
        """The transformers tokenizer; one object as long as its files stay as they are.

        Raises:
            FeatherweightError: the folder holds none; the error names the files that were looked for.
        """
        present = [name for name in _TOKENIZER_FILES if (self.folder / name).is_file()]
        problem = ", ".join(present) or "none of them"
        if present:
            try:
                return _tokenizer(self.folder, _versions(self.folder))
            except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
                problem = f"{problem}; {str(error).splitlines()[0][:300]}"
        raise FeatherweightError(
            f"{self.folder} holds no tokenizer that transformers can read",
            found=problem,
            expected="one of " + ", ".join(_TOKENIZER_FILES),
            fix="copy the tokenizer files of the model you started from into this folder",
        )

    def fingerprint(self) -> str:
        """Identity of the weight files, see `shards.fingerprint`."""
        return fingerprint(model_shards(self.folder))

    def max_length(self) -> int:
        """The longest context in tokens: the config's `max_position_embeddings`, else 2048."""
        config = self.config().get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or _FALLBACK_LENGTH)


def _versions(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file that a tokenizer may be read from."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".txt", ".jinja"))
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def resolve_model(name: str | Path, *, offline: bool = False, confirm: Confirm | None = None) -> ModelSource:
    """Find a model by folder, GGUF file, built-in name (`demo`, `smollm2-135m`) or hub name, fetching it if need be.

    Args:
        name: as the user wrote it; a `Path` is always a local file or folder.
        offline: never use the network.
        confirm: asked once before anything is downloaded for a built-in name; without it such downloads are refused.

    Raises:
        FeatherweightError: nothing by that name; a folder that is half downloaded or pickled; a download that was refused.
    """
    text = str(name)
    path = Path(name).expanduser()
    packaged = isinstance(name, str) and text in _PACKAGED
    if path.is_dir() and not (packaged and not (path / "config.json").is_file()):
        return ModelSource(text, check_folder(path))
    if path.suffix == ".gguf":
        return ModelSource(text, _from_gguf(path))
    if path.is_file():
        raise FeatherweightError(
            f"{path} is a file", expected="a folder with config.json and safetensors, or a .gguf file", fix=f"use {path.parent}"
        )
    if packaged:
        return ModelSource(text, check_folder(_packaged_folder(_PACKAGED[text])))
    if isinstance(name, str) and text in _FETCHED:
        from featherweight.models.smollm2 import fetch_smollm2

        return ModelSource(text, fetch_smollm2(offline=offline, confirm=confirm))
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(text):
        raise _no_such_folder(path)
    return ModelSource(text, check_folder(_from_hub(text, offline)))


def resolve_config(name: str | Path, *, offline: bool = False) -> ModelSource:
    """As `resolve_model`, but a config.json is enough: of a hub name nothing else is fetched, a folder need hold no weights.

    Raises:
        FeatherweightError: nothing by that name, or no config.json.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return ModelSource(str(name), folder)
    known = isinstance(name, Path) or str(name) in {**_PACKAGED, **_FETCHED} or folder.exists() or folder.suffix == ".gguf"
    if known or not _HUB_NAME.fullmatch(str(name)):
        return resolve_model(name, offline=offline)
    return ModelSource(str(name), _from_hub(str(name), offline, ["config.json"]))


def config_alone(name: str | Path) -> ModelSource | None:
    """The folder of that name if it holds a config.json and no weights at all, from which a plan can be made; else None."""
    folder = Path(name).expanduser()
    weights = (*_WEIGHTS, "*.gguf")
    if not (folder / "config.json").is_file() or any(path for pattern in weights for path in folder.glob(pattern)):
        return None
    return ModelSource(str(name), folder)


def check_folder(folder: Path) -> Path:
    """The same folder, if it holds config.json and every safetensors shard.

    Raises:
        FeatherweightError: config.json is missing; or as `model_shards`.
    """
    if not (folder / "config.json").is_file():
        names = sorted(path.name for path in folder.iterdir())
        raise FeatherweightError(
            f"{folder} is not a model: it holds no config.json",
            found=", ".join(names[:8]) or "an empty folder",
            expected="config.json and safetensors",
            fix="name the folder that save_pretrained wrote",
        )
    model_shards(folder)
    return folder


def _packaged_folder(name: str) -> Path:
    from importlib.resources import files

    folder = Path(str(files("featherweight").joinpath("assets", name)))
    if not folder.is_dir():
        raise FeatherweightError(f"the packaged model {name} is missing from this installation", fix="reinstall featherweight")
    return folder


def _from_gguf(path: Path) -> Path:
    from featherweight.models.gguf import convert_gguf

    if not path.is_file():
        raise _no_such_folder(path)
    return convert_gguf(path)


def _no_such_folder(path: Path) -> FeatherweightError:
    parent = path.parent
    siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    close = [str(parent / entry) for entry in nearest(path.name, siblings)]
    found = f"nothing at {path}" if parent.is_dir() else f"no folder {parent}"
    return FeatherweightError(
        f"there is no model at {path}",
        found=found,
        expected="a folder, a .gguf file, " + ", ".join([*_PACKAGED, *_FETCHED]) + ", or a hub name like owner/model",
        fix=f"did you mean {' or '.join(close)}?" if close else "check the path",
    )


def _from_hub(name: str, offline: bool, files: list[str] = _HUB_FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        local = sorted(entry.name for entry in Path().iterdir() if entry.is_dir())
        known = nearest(name, [*_PACKAGED, *_FETCHED, *local])
        status = getattr(getattr(error, "response", None), "status_code", None)
        fix = {
            401: "log in with `hf auth login`, and check the name",
            403: "ask for access on the model's page, then log in with `hf auth login`",
            404: "check the name on the hub",
        }.get(status or 0, "fetch it once while online" if offline else "check the name and the network")
        raise FeatherweightError(
            f"cannot get the model {name!r} " + ("from the local hub cache (offline)" if offline else "from the hub"),
            found=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            expected=f"a hub name, a local folder, or one of the nearest known names: {', '.join(known)}",
            fix=fix,
        ) from error
