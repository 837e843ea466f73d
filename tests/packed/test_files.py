"""Files of tensors: sizes known before they exist, writing that leaves nothing half done."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featherweight import FeatherweightError
from featherweight.packed.files import _NAMES, file_bytes, layout_of_tensors, write


@pytest.mark.parametrize("count", [1, 3, 40])
def test_size_is_known_before_the_file_exists(count: int, tmp_path: Path) -> None:
    dtypes = itertools.cycle(_NAMES)
    tensors = {f"läyer.{i % 7}.{i}": torch.zeros(i + 1, (i * 3) % 5, dtype=next(dtypes)) for i in range(count)}
    write(tmp_path / "x.safetensors", tensors)
    assert (tmp_path / "x.safetensors").stat().st_size == file_bytes(layout_of_tensors(tensors))


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.packed import files

    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.ones(3)})

    def full(*arguments: object, **keywords: object) -> None:
        Path(str(arguments[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(FeatherweightError, match="No space left"):
        write(path, {"a": torch.zeros(3)})
    assert load_file(path)["a"].sum() == 3 and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
