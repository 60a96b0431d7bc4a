"""The documentation's promises: its code runs and prints what stands below it, its reference names
all that is public, it builds.

A page's python blocks share a namespace. A text block right below one is what it prints, `...`
standing for any text. A console block holds commands, each after `$ `, and below it what it writes
to either stream.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import experts
import poe

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SLOW = {"cli.md", "concepts.md", "index.md", "models.md", "posteriors.md", "teaching.md"}
BLOCK = re.compile(
    r"^```(python|console)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
END = "-- end --"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(text: str, name: str, module: types.ModuleType) -> None:
    """Runs the blocks of a page, python in a module; raises AssertionError where one prints other
    than what the page says."""
    for block in BLOCK.finditer(text):
        # blank lines in front make tracebacks and compile errors point at the page's own line
        # numbers
        line = text[: block.start(2)].count("\n")
        if block[1] == "console":
            results = run_commands(COMMAND.findall(block[2]))
        else:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * line + block[2], name, "exec"), vars(module))
            results = [(block[3] or "", printed.getvalue())]
        for wanted, got in results:
            if not doctest.OutputChecker().check_output(wanted, got, OPTIONS):
                raise AssertionError(
                    f"{name}, the block at line {line} prints\n{got}\nand the page says\n{wanted}"
                )


def run_commands(commands: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the page says of each command, and what it wrote in a shell that runs them all, `$?`
    going from one to the next."""
    script = "exec 2>&1\n" + "".join(
        f"{command}\nstatus=$?\necho '{END}'\n(exit $status)\n" for command, _ in commands
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "136", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        ["sh", "-c", script], env=os.environ | settings, capture_output=True, text=True
    ).stdout
    return [
        (wanted, got)
        for (_, wanted), got in zip(commands, said.split(f"{END}\n")[:-1], strict=True)
    ]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW), id=p.stem) for p in PAGES]
)
def test_code_blocks_print_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(
        sys.modules, module.__name__, module
    )  # classes of a page are found by their module
    run_page(page.read_text(), page.name, module)


def test_a_page_that_says_something_else_is_caught() -> None:
    module = types.ModuleType("docs_wrong")
    run_page("```python\nprint(1.25)\n```\n\n```text\n1...\n```\n", "right.md", module)
    with pytest.raises(AssertionError, match="line 1 prints\n1.25"):
        run_page("```python\nprint(1.25)\n```\n\n```text\n1.3\n```\n", "wrong.md", module)
    with pytest.raises(AssertionError, match="prints\n1.25"):
        run_page("```python\nprint(1.25)\n```\n", "silent.md", module)
    run_page("```console\n$ (echo a; exit 3)\na\n$ echo $?\n3\n```\n", "right.md", module)
    with pytest.raises(AssertionError, match="line 1 prints\nb"):
        run_page("```console\n$ echo a\na\n$ echo b >&2\nc\n```\n", "wrong.md", module)


def test_the_reference_names_all_that_is_public() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    missing = [
        path
        for package in (poe, experts)
        for name in package.__all__
        for value in [getattr(package, name)]
        for path in [f"{value.__module__}.{name}"]
        if path not in shown and value.__module__ not in shown
    ]
    assert missing == []
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    offered = {
        value for group in ("poe.experts", "poe.converters") for value in points[group].values()
    }
    missing = [
        value
        for value in offered
        if value.replace(":", ".") not in shown and value.partition(":")[0] not in shown
    ]
    assert missing == []


@pytest.mark.slow
def test_the_browser_sees_what_is_broken(tmp_path: Path) -> None:
    source = Path(__file__).parent / "browser.py"
    spec = importlib.util.spec_from_file_location("browser", source)
    assert spec is not None and spec.loader is not None
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    (tmp_path / "right.html").write_text(
        '<a href="#here" id="here">x</a><a href="right.html#here">y</a>'
    )
    assert browser.broken_links(tmp_path) == []
    (tmp_path / "wrong.html").write_text(
        '<a href="right.html#there">a</a><a href="gone.html">b</a><img alt="c" src="gone.png"><img '
        'src="silent.png">'
        '<link href="https://elsewhere.example/font.css"><script>console.error("told"); '
        "undefined_name();</script>"
    )
    (tmp_path / "silent.png").write_bytes(b"no picture")
    found = "\n".join(browser.broken_links(tmp_path))
    for what in (
        "right.html#there",
        "gone.html",
        "gone.png",
        "silent.png: no alternative text",
        "https://elsewhere.example",
    ):
        assert f"wrong.html: {what}" in found
    if browser.chromium() is None:
        pytest.skip("no chromium: only links were checked")
    said = "\n".join(browser.seen(tmp_path))
    for what in ("picture gone.png", "picture silent.png", "told", "undefined_name is not defined"):
        assert what in said
    assert "right.html" not in said
