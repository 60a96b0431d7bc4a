"""The page of compositions: what is on it, and that a call which was interrupted goes on."""

from __future__ import annotations

import json
import re

import pytest

import poe
from poe.__main__ import main
from poe.cli import gallery
from poe.cli.gallery import Row

pytest.importorskip("matplotlib")
pytest.importorskip("nflows")
ROWS = (Row("digits", "even"), Row("digits", "even | loops"), Row("pairs", "loops"))


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The expressions that are drawn, on a page of three quick rows."""
    monkeypatch.setattr(gallery, "ROWS", ROWS)
    seen: list[str] = []
    sample = poe.sample

    def counted(energy, *arguments, **keywords):
        seen.append(str(energy))
        return sample(energy, *arguments, **keywords)

    monkeypatch.setattr(poe, "sample", counted)
    return seen


def test_a_page_of_its_own(tmp_path, drawn, capsys):
    out, page = tmp_path / "g.png", tmp_path / "g.html"
    assert main(["gallery", "--out", str(out), "--html", str(page), "--draws", "6", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["expression"] for row in facts["rows"]] == [row.expression for row in ROWS]
    assert facts["files"] == [str(out), str(page)] and out.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert html.count("<img ") == 3 and html.count("<h2>") == 2 and "TRUSTED" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # needs nothing but itself
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.html", "g.png"]


def test_an_interrupted_page_goes_on(tmp_path, drawn, monkeypatch, capsys):
    out = tmp_path / "g.png"
    whole, sample = poe.sample, poe.sample

    def stops(energy, *arguments, **keywords):
        if str(energy) == "loops":
            raise KeyboardInterrupt
        return sample(energy, *arguments, **keywords)

    monkeypatch.setattr(poe, "sample", stops)
    assert main(["gallery", "--out", str(out), "--draws", "6"]) == 130
    assert not out.exists() and len(list((tmp_path / "g.parts").iterdir())) == 2
    first, *_ = sorted((tmp_path / "g.parts").iterdir())
    first.write_bytes(first.read_bytes()[:100])  # and one file was cut off
    monkeypatch.setattr(poe, "sample", whole)
    drawn.clear()
    assert main(["gallery", "--out", str(out), "--draws", "6"]) == 0
    assert (
        len(drawn) == 2 and "loops" in drawn
    )  # the row that was missing and the one that was broken
    assert "drawn anew" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]


def test_what_others_keep_beside_the_page_stays(tmp_path, drawn, capsys):
    mine = tmp_path / "g.parts" / "thesis.txt"
    (tmp_path / "g.parts" / "folder").mkdir(parents=True)
    mine.write_text("mine")
    assert (
        main(["gallery", "--out", str(tmp_path / "page"), "--draws", "2"]) == 2 and not drawn
    )  # said before anything is drawn
    assert "does not end in one of .png" in capsys.readouterr().err
    assert main(["gallery", "--out", str(tmp_path / "g.png"), "--draws", "2"]) == 0
    assert mine.read_text() == "mine" and sorted(path.name for path in mine.parent.iterdir()) == [
        "folder",
        "thesis.txt",
    ]


def test_rows_of_another_seed_are_drawn_anew(tmp_path, drawn):
    names = gallery._names()
    a, b, c = (gallery._digest(ROWS[0], names, *pair) for pair in ((6, 0), (6, 1), (7, 0)))
    assert len({a, b, c, gallery._digest(ROWS[1], names, 6, 0)}) == 4
    assert a == gallery._digest(ROWS[0], gallery._names(), 6, 0)


def test_every_row_of_the_page_is_an_expression():
    names = gallery._names()
    for row in gallery.ROWS:
        if "normalize" not in row.expression:  # those estimate log Z when they are read
            assert poe.parse(row.expression, names).proper
    assert {row.section for row in gallery.ROWS} >= {
        "single concepts",
        "disjunctions",
        "negations",
        "digits",
    }
