"""A reference model's logits on disk, for when it and the compressed model do not fit in memory together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from featherweight.data import Windows
from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import CausalModel, Progress, dtype_of, fingerprint, measuring, window_logits

INDEX = "reference.json"


@dataclass(frozen=True)
class StoredReference:
    """Logits `[T, vocabulary]` of each window, one file per window, in the reference's own dtype.

    Attributes:
        folder: where they lie.
        tokens_sha256: of the windows they belong to.
        fingerprint: of the model that made them.
        dtype: of that model's activations.
        windows: how many.
    """

    folder: Path
    tokens_sha256: str
    fingerprint: str
    dtype: str
    windows: int

    @classmethod
    def open(cls, folder: Path) -> StoredReference:
        """What `store_reference` left in a folder.

        Raises:
            FeatherweightError: nothing there, or it was not finished.
        """
        index = folder / INDEX
        if not index.is_file():
            raise FeatherweightError(
                f"no stored reference in {folder}",
                found="no reference.json (never made, or interrupted)",
                expected=INDEX,
                fix="make it again with store_reference",
            )
        return cls(folder, **json.loads(index.read_text(encoding="utf-8")))

    def logits(self, window: int) -> Tensor:
        """Logits of one window, `[T, vocabulary]`, on the CPU."""
        from safetensors.torch import load_file

        return load_file(_file(self.folder, window))["logits"]

    def check(self, windows: Windows) -> None:
        """Refuse windows other than the stored ones.

        Raises:
            FeatherweightError: other token ids.
        """
        if windows.sha256 != self.tokens_sha256:
            raise FeatherweightError(
                "the stored reference belongs to other windows",
                found=f"windows {windows.sha256[:12]} ({len(windows)})",
                expected=f"windows {self.tokens_sha256[:12]} ({self.windows})",
                fix="store the reference again for these windows",
            )


def store_reference(
    reference: CausalModel, windows: Windows, folder: Path, *, progress: Progress | None = None
) -> StoredReference:
    """Run the reference over the windows and keep its logits in `folder`: windows · T · vocabulary · bytes of its dtype.

    Args:
        reference: any callable `model(input_ids=tokens).logits`.
        windows: the windows that will be compared.
        folder: an existing or new folder, for instance a temporary one; the caller removes it.
        progress: called after each window.

    Raises:
        FeatherweightError: logits that are not finite.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    with measuring(reference):
        for index, tokens in enumerate(windows.tokens):
            logits = window_logits(reference, tokens, index, "the reference")
            save_file({"logits": logits.cpu().clone().contiguous()}, _file(folder, index))
            if progress is not None:
                progress(index + 1, len(windows))
    stored = StoredReference(folder, windows.sha256, fingerprint(reference), dtype_of(reference), len(windows))
    told = {name: value for name, value in asdict(stored).items() if name != "folder"}
    (folder / INDEX).write_text(json.dumps(told, indent=1), encoding="utf-8")
    return stored


def _file(folder: Path, window: int) -> Path:
    return folder / f"window-{window:05d}.safetensors"
