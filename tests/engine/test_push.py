"""What would be sent, and what stops it; the hub is a stand-in that keeps what it is given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from featherweight import api
from featherweight.errors import FeatherweightError


class Hub:
    """As much of `HfApi` as is asked for."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012 - one hub for the test

    def create_repo(self, repository: str, **told: Any) -> None:
        """Keep it."""
        self.calls.append((repository, told))

    def upload_folder(self, **told: Any) -> str:
        """Keep it."""
        self.calls.append(("upload", told))
        return "https://hub/commit"


@pytest.fixture
def output(gptq_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gptq_run[1].folder, tmp_path / "out"))


def test_push_sends_what_loading_needs(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    (output / "report.html").write_text("big")
    done = api.push(output, "me/light", private=True)
    sent = dict(Hub.calls)["upload"]["allow_patterns"]
    assert {"config.json", "README.md", "ledger.json", "probe.safetensors", "tokenizer.json"} <= set(sent)
    assert "journal.json" not in sent
    assert "report.html" not in sent
    assert done.url == "https://hub/commit"
    assert dict(Hub.calls)["me/light"]["private"] is True


def test_nothing_is_sent_without_proof_login_or_a_name(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.calls.clear()
    assert api.push(output, "me/light", dry_run=True).url == ""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(FeatherweightError, match="not logged in"):
        api.push(output, "me/light")
    with pytest.raises(FeatherweightError, match="name"):
        api.push(output, "light")
    shard = next(output.glob("model*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(FeatherweightError):
        api.push(output, "me/light", dry_run=True)
    assert not Hub.calls
