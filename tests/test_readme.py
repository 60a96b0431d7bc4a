"""The README's promises: its code blocks run, in order, in one namespace; its commands are the
Makefile's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_a_picture_and_code_come_first() -> None:
    first = BLOCK.search(README)
    assert first is not None
    assert README[: first.start()].count("\n") + 1 <= 25
    assert "![" in README[: first.start()]
    assert README.count("\n") <= 110


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in BLOCK.finditer(README):
        # Blank lines in front make tracebacks and compile errors point at the README's own line
        # numbers.
        line = README[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], "README.md", "exec"), namespace)


def test_pip_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    template = re.search(r"pip install .*?(-c \S+ -e) '\.\[\$\*\]'", makefile)
    assert template is not None
    for extra in ("demo", "dev"):
        assert f"pip install {template[1]} '.[{extra}]'" in README


def test_relative_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
