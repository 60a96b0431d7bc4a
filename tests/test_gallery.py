"""The page of compositions: what is on it, and that an interrupted call continues."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import poe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import gallery
from gallery import Row

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
    gallery.gallery(out, 6, 0, html=page)
    said = capsys.readouterr().out
    assert all(f"\n{row.expression}: " in said for row in ROWS)
    assert f"{out} written" in said and f"{page} written" in said
    assert out.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert html.count("<img ") == 3 and html.count("<h2>") == 2 and "TRUSTED" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # needs nothing but itself
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.html", "g.png"]


def test_an_interrupted_page_continues(tmp_path, drawn, monkeypatch, capsys):
    out = tmp_path / "g.png"
    whole, sample = poe.sample, poe.sample

    def stops(energy, *arguments, **keywords):
        if str(energy) == "loops":
            raise KeyboardInterrupt
        return sample(energy, *arguments, **keywords)

    monkeypatch.setattr(poe, "sample", stops)
    with pytest.raises(KeyboardInterrupt):
        gallery.gallery(out, 6, 0)
    assert not out.exists() and len(list((tmp_path / "g.parts").iterdir())) == 2
    first, *_ = sorted((tmp_path / "g.parts").iterdir())
    first.write_bytes(first.read_bytes()[:100])  # and one file was cut off
    monkeypatch.setattr(poe, "sample", whole)
    drawn.clear()
    gallery.gallery(out, 6, 0)
    assert len(drawn) == 2 and "loops" in drawn  # the row that was missing and the damaged one
    assert "drawn again" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]


def test_what_others_keep_beside_the_page_stays(tmp_path, drawn):
    mine = tmp_path / "g.parts" / "thesis.txt"
    (tmp_path / "g.parts" / "folder").mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="must end in .png"):
        gallery.gallery(tmp_path / "page", 2, 0)
    assert not drawn  # refused before anything is drawn
    gallery.gallery(tmp_path / "g.png", 2, 0)
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in mine.parent.iterdir()) == ["folder", "thesis.txt"]


def test_rows_of_another_seed_are_drawn_again(tmp_path, drawn):
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
