"""Every command and every piece of Python in the README and the docs runs, in order, in a fresh folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from featherweight.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n)?```(bash|python|yaml)(?: file=(\S+))?\n(.*?)```", re.DOTALL)


def blocks(document: Path) -> list[tuple[str, str, str]]:
    """`(language, file name or "", text)` of every block that is not marked as not run."""
    found = _BLOCK.findall(document.read_text(encoding="utf-8"))
    return [(language, name, text) for skipped, language, name, text in found if not skipped]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, name, text in blocks(document):
        if name:
            Path(name).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{document.name}", "exec"), names)
        elif language == "bash":
            run_shell(text)


def run_shell(text: str) -> None:
    """Lines `fw ...`, in this process; anything else must be marked as not run."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "fw", f"only fw commands run in documents: {line}"
            app(words[1:], standalone_mode=False)


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
