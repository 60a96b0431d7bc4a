"""What notebooks show of energies and of draws."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest

import poe
from poe.algebra import outline
from poe.algebra import support as sets
from tests.poe.targets import Gauss, Raw

pytest.importorskip("matplotlib")

UNIT = Gauss(0.0, name="unit")


class Balanced(HTMLParser):
    """Reads a fragment: its tags, attributes and text; raises where an element is not closed in
    order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value or "" for name, value in attrs if name not in ("style", "alt")]
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_an_energy_in_a_notebook_is_its_tree_and_facts():
    a, b = Gauss(0.0, name="a"), Raw(lambda x: x.square().sum(-1), name="b", proper=None)
    page = Balanced((a & (a - b))._repr_html_())
    for part in (
        "a & a - b",
        "event shape",
        "(2,)",
        "log Z",
        "unknown",
        "`-` rests on raw energies",
        "unwanted",
        "importance:",
    ):
        assert part in page.text
    assert set(page.tags) <= {
        "div",
        "code",
        "table",
        "tr",
        "td",
        "ul",
        "li",
        "details",
        "summary",
        "span",
        "br",
    }
    tree = outline.outline(a & (a - b))
    assert [part.text for part in tree.parts] == ["a", "a - b"]
    assert tree.parts[1].parts[0].again and not tree.parts[1].parts[1].again
    assert Balanced((~a)._repr_html_()).text.count("improper") == 1


def test_text_from_elsewhere_is_escaped():
    class Odd(sets.Constraint):
        event_dim, is_discrete = 1, False

        def check(self, value):
            return (value == value).all(-1)

        def __repr__(self):
            return "<script>alert('&')</script>"

    energy = Raw(lambda x: x.square().sum(-1), name="raw")
    energy._support = Odd()
    page = Balanced(energy._repr_html_())
    assert "script" not in page.tags and "<script>alert('&')</script>" in page.text
    draws = poe.sample(UNIT, 50, seed=0).warned('<img src=x onerror="1">')
    page = Balanced(draws._repr_html_())
    assert page.tags.count("img") == 1 and '<img src=x onerror="1">' in page.text


def test_draws_in_a_notebook_carry_report_and_picture():
    from matplotlib.image import imread

    draws = poe.sample(UNIT & Gauss(1.0), 200, seed=0)
    html = draws._repr_html_()
    page = Balanced(html)
    assert draws.report() in page.text and draws.verdict in page.text
    (source,) = (value for value in page.values if value.startswith("data:image/png;base64,"))
    image = imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert min(image.shape[:2]) > 200 and image[..., :3].std() > 0.05  # not blank
    assert not re.search(
        r"https?://|src=\"(?!data:)|<link|@import", html
    )  # needs nothing from elsewhere


def test_a_figure_shows_itself_in_a_notebook():
    assert poe.sample(UNIT, 50, seed=0).plot()._repr_png_().startswith(b"\x89PNG\r\n")
