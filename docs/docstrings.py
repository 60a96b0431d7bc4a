"""Makes docstrings Markdown for the reference: an extension of griffe.

Doctests become code blocks, asterisks stay asterisks, a bar in a cell of a table is no end of the
cell, and the shape comment of a signature becomes the first line of its docstring.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)  # up to a blank line
SHAPES = re.compile(r"#\s*((?:[\w ]+: )?\(.*)$")
SECTION = re.compile(r"(Arguments|Attributes|Raises|Returns|Yields):\s*$")
CODE = re.compile(r"(`[^`]*`)")
RULE = re.compile(r"\s*\|(?:-+\|)+")
BAR = re.compile(r"`[^`]*`|\\\||(\|)")  # code, an escaped bar, or a bar


def escaped(text: str) -> str:
    """Text with `*` escaped where Markdown would read emphasis: not in code, whether inline, fenced
    or indented."""
    lines, fenced, base, after_blank, code = [], False, 0, True, False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        fenced ^= line.lstrip().startswith("```")
        if line.strip():
            base = 4 if SECTION.match(line) else base if indent else 0
            code = indent >= base + 4 and (after_blank or code)
        after_blank = not line.strip()
        plain = not (fenced or code)
        lines.append(
            "".join(p if p.startswith("`") else p.replace("*", r"\*") for p in CODE.split(line))
            if plain
            else line
        )
    return "\n".join(lines)


def tables(text: str) -> str:
    """Text with bars escaped that stand inside a cell of a table, as in `| p(x | c) |`: all but the
    nearest to the bars of its rule."""
    lines = text.splitlines()
    for number in [i for i, line in enumerate(lines) if RULE.fullmatch(line)]:
        columns = [i for i, character in enumerate(lines[number]) if character == "|"]
        for row in range(number - 1, len(lines)):
            if not lines[row].lstrip().startswith("|"):
                break
            bars = [found.start() for found in BAR.finditer(lines[row]) if found[1]]
            if len(bars) > len(columns):
                inner = set(bars) - {
                    min(bars, key=lambda bar: abs(bar - column)) for column in columns
                }
                lines[row] = "".join(
                    f"\\{c}" if i in inner else c for i, c in enumerate(lines[row])
                )
    return "\n".join(lines)


def shapes(source: list[str]) -> str:
    """The comment `# (*batch, *event) -> (*batch)` of a signature, or nothing."""
    for line in source:
        if line.lstrip().startswith(('"""', 'r"""')):
            break
        if not line.lstrip().startswith("@") and (found := SHAPES.search(line)):
            return found[1].strip()
    return ""


class Docstrings(griffe.Extension):
    """Applied to every object that the reference shows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = DOCTEST.sub(lambda m: f"{m[1]}```pycon\n{m[0]}\n{m[1]}```", obj.docstring.value)
        text = escaped(tables(text))
        if isinstance(obj, griffe.Function) and (comment := shapes(obj.source.splitlines())):
            text = f"`{comment}`\n\n{text}"
        obj.docstring.value = text
