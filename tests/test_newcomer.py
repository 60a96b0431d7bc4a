"""A newcomer's path: two nflows checkpoints, loaded from state_dicts and composed, in at most 12
lines from the clone on."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import newcomer

ROOT = Path(__file__).parent.parent
SHELL = 3  # the two lines of the README that install, and the one that runs the program


def program() -> str:
    """What a newcomer types: the imports that `compose` needs, and its body."""
    source = Path(newcomer.__file__).read_text()
    tree = ast.parse(source)
    (function,) = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "compose"
    ]
    body = textwrap.dedent(
        "\n".join(source.splitlines()[function.body[0].lineno - 1 : function.end_lineno])
    )
    needed = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(
        [ast.unparse(node) for node in imports if needed & {alias.name for alias in node.names}]
        + [body]
    )


def test_twelve_lines_from_the_clone_on() -> None:
    readme = re.search(
        r"^```\n(python3 -m venv.*?)^```$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert readme is not None and "pip install" in readme[1].splitlines()[1]
    lines = [line for line in program().splitlines() if line.strip()]
    assert len(lines) + SHELL <= 12 and max(map(len, lines)) <= 110


def test_they_draw_the_product_of_the_two_flows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POE_FAST", "1")
    newcomer.main()
    assert "\nTRUSTED: " in capsys.readouterr().out
    names: dict = {}
    exec(program(), names)
    draws = names["draws"]
    # quadrature with the densities that nflows itself states
    axis = torch.linspace(-6, 6, 241)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weights = sum(flow.log_prob(grid) for flow in names["flows"]).double().softmax(0)
    mean = weights @ grid.double()
    deviation = (weights @ (grid.double() - mean).square()).sqrt()
    assert draws.trusted and draws.diagnostics.ess_bulk > 300
    error = deviation / draws.diagnostics.ess_bulk**0.5
    assert ((draws.x.double().mean(0) - mean).abs() < 5 * error).all()
