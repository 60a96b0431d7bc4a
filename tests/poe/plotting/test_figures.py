"""Pictures of draws, by the numbers in them: densities of scipy, level sets of known radius; and
what notebooks show."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy import stats

import experts
import poe
from poe.algebra import outline
from poe.algebra import support as sets
from poe.plotting import continuous, figures, landscape
from tests.poe.targets import Gauss, Raw

pytest.importorskip("matplotlib")

UNIT = Gauss(0.0, name="unit")


def named(energy: poe.Energy, name: str) -> poe.Energy:
    energy.name = name
    return energy


def lines(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.lines}


def heights(axes) -> np.ndarray:
    return np.array([bar.get_height() for bar in axes.patches])


# ---- what a picture is made of


def test_regions_of_a_normal_have_their_known_energies():
    side = torch.linspace(-6, 6, 400, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    values = UNIT(points).reshape(400, 400)
    half, most = landscape.regions(values, (0.5, 0.9))
    # r²/2 of a normal in the plane is exponential: P(r²/2 <= log 2) = 1/2, P(r²/2 <= log 10) = 9/10
    assert half - values.min() == pytest.approx(math.log(2), abs=2e-3)
    assert most - values.min() == pytest.approx(math.log(10), abs=5e-3)
    assert landscape.regions(torch.full((9,), math.inf), (0.5,)) == []
    flat = torch.tensor([1.0, 1.0, math.inf, math.nan])
    assert landscape.regions(flat, (0.5, 0.9)) == [1.0, 1.0]


def test_density_is_normalised_with_log_z_or_on_the_grid():
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    raw = poe.shift(Gauss(0.0, 0.7, d=1), 3.0)
    values = landscape.energies(raw, grid[:, None])
    expected = torch.from_numpy(stats.norm(0, 0.7).pdf(grid.numpy()))
    for log_z in (-3.0, None):
        torch.testing.assert_close(
            landscape.density(values, 16 / 2000, log_z), expected, atol=1e-6, rtol=1e-6
        )
    assert landscape.density(
        values, 16 / 2000, None, 0.25
    ).sum().item() * 16 / 2000 == pytest.approx(0.25)


def test_factors_are_the_experts_as_written():
    a, b, c = (Gauss(float(i), name=name) for i, name in enumerate("abc"))
    labels = [
        factor.label
        for factor in landscape.components((a & b) ** 2 / c - poe.mixture([a, c], weights=[1, 2]))
    ]
    assert labels == ["a", "b", "1/c"]
    assert [f.label for f in landscape.components(a - b | c)] == ["a", "not b", "c"]
    both = named(a | b, "both")
    assert [f.label for f in landscape.components(both & c)] == ["both", "c"]
    one = Gauss(0.0, d=1, name="one")
    placed = landscape.components(poe.on(one, [1], (2,)) & a @ torch.nn.Linear(2, 2))
    assert [f.label for f in placed] == ["one on [1]", "a @ linear"]
    assert all(f.energy.event_shape == (2,) for f in placed)


def test_the_window_holds_draws_and_near_experts_inside_the_support():
    x = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    low, high = landscape.window(x, UNIT & Gauss(3.0, name="near"))
    inside = ((x >= low) & (x <= high)).all(-1).double().mean()
    assert inside > 0.97 and (high > 4).all()  # with the bulk of the expert at 3
    far = landscape.window(x, UNIT & Gauss(1000.0, name="far"))[1]
    assert (far < 10).all()
    low, high = landscape.window(torch.rand(1000, 1), experts.Beta([2.0], [2.0]))
    assert -0.1 < low.item() < 0 and 1 < high.item() < 1.1


# ---- what is in the picture


def test_a_histogram_stands_against_the_density_of_scipy():
    target = named(experts.Normal([0.0], [1.0]), "a") & named(experts.Normal([2.0], [1.0]), "b")
    draws = poe.sample(target, 4000, seed=0)
    (axes,) = draws.plot().axes
    grid, density = lines(axes)["density"]
    np.testing.assert_allclose(density, stats.norm(1, math.sqrt(0.5)).pdf(grid), atol=1e-4)
    np.testing.assert_allclose(
        lines(axes)["b"][1], stats.norm(2, 1).pdf(lines(axes)["b"][0]), atol=1e-5
    )
    bars, width = heights(axes), axes.patches[0].get_width()
    low, high = axes.get_xlim()
    x = draws.x.numpy()
    assert bars.sum() * width == pytest.approx(((x >= low) & (x <= high)).mean(), abs=1e-6)
    middle = np.array([bar.get_x() + width / 2 for bar in axes.patches])
    p = stats.norm(1, math.sqrt(0.5)).pdf(middle) * width
    assert (
        np.abs(bars * width - p) < 5 * np.sqrt(p / 4000) + 2e-3
    ).all()  # 5 standard errors, and the curve of a bar's top


def test_an_unknown_constant_is_found_on_the_grid():
    energy = Raw(lambda x: 0.5 * x.square().sum(-1) + 40, d=1)
    draws = replace(poe.sample(Gauss(0.0, d=1), 1000, seed=0), target=energy, log_z=None)
    grid, density = lines(draws.plot().axes[0])["density"]
    np.testing.assert_allclose(density, stats.norm.pdf(grid), rtol=0.02)


def test_bars_stand_against_probabilities_of_scipy():
    draws = poe.sample(experts.Poisson(4.0), 2000, seed=0)
    (axes,) = draws.plot().axes
    values, p = lines(axes)["probability"]
    np.testing.assert_allclose(p, stats.poisson(4).pmf(values), atol=1e-6)
    np.testing.assert_allclose(
        heights(axes), np.bincount(draws.x.long().numpy(), minlength=len(values)) / 2000, atol=1e-12
    )


def test_level_sets_of_a_normal_are_circles():
    draws = poe.sample(Gauss(0.0, name="a") & Gauss(2.0, name="b"), 500, seed=0)
    figure = draws.plot()
    (axes,) = figure.axes
    contours = [collection for collection in axes.collections if hasattr(collection, "levels")]
    assert len(contours) == 2
    for contour, centre in zip(contours, (0.0, 2.0), strict=True):
        half, most = (path.vertices for path in contour.get_paths())
        cell = (axes.get_xlim()[1] - axes.get_xlim()[0]) / continuous.GRID
        for vertices, mass in ((half, 0.5), (most, 0.9)):
            radii = np.linalg.norm(vertices - centre, axis=1)
            assert np.ptp(radii) < cell  # a circle
            # the quantile of r²/2 over 4096 draws has standard error sqrt(m / (4096 (1 - m))): at
            # most 0.047, and 0.022 in r
            assert radii.mean() == pytest.approx(math.sqrt(-2 * math.log(1 - mass)), abs=0.1)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert axes.get_aspect() == 1 and (axes.get_xlabel(), axes.get_ylabel()) == ("x[0]", "x[1]")


def test_levels_of_an_expert_that_does_not_draw_are_those_of_its_mass_in_the_picture():
    raw = Raw(lambda x: 0.5 * x.square().sum(-1), name="raw")
    draws = replace(poe.sample(UNIT, 2000, seed=0), target=raw)
    (contour,) = (
        collection
        for collection in draws.plot().axes[0].collections
        if hasattr(collection, "levels")
    )
    radii = np.linalg.norm(contour.get_paths()[0].vertices, axis=1)
    assert radii.mean() == pytest.approx(
        math.sqrt(2 * math.log(2)), abs=0.05
    )  # 1 % of the mass lies outside


def test_a_flat_expert_shows_the_edge_of_its_support():
    box = experts.Distribution(
        torch.distributions.Uniform(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]))
    )
    (axes,) = poe.sample(named(box, "box"), 300, seed=0).plot().axes
    (contour,) = (collection for collection in axes.collections if hasattr(collection, "levels"))
    edge = np.abs(contour.get_paths()[0].vertices).max(1)
    assert np.abs(edge - 1).max() < 0.03


def test_discs_have_areas_in_proportion_to_shares():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]))
    draws = poe.sample(experts.Categorical(logits=logits), 1000, seed=0)
    (axes,) = draws.plot().axes
    found, wanted = axes.collections
    p = np.outer([0.1, 0.2, 0.7], [0.5, 0.25, 0.25]).flatten()
    np.testing.assert_allclose(wanted.get_sizes() / wanted.get_sizes().sum(), p, atol=1e-6)
    x = draws.x.numpy()
    counts = np.array([((x == (i, j)).all(1)).mean() for i in range(3) for j in range(3)])
    np.testing.assert_allclose(found.get_sizes() / wanted.get_sizes().sum(), counts, atol=1e-6)


def test_a_corner_plot_has_at_most_six_coordinates():
    figure = poe.sample(Gauss(0.0, d=9), 200, seed=0).plot()
    assert len(figure.axes) == 36
    assert figure.axes[-1].get_xlabel() == "x[5]" and any(
        "first 6 of 9" in text.get_text() for text in figure.texts
    )
    pair = poe.sample(Gauss(0.0, d=6), 50, seed=0)
    grid = replace(
        pair,
        x=pair.x.reshape(50, 2, 3),
        chains=pair.chains.reshape(*pair.chains.shape[:2], 2, 3),
        target=None,
    )
    assert grid.plot().axes[-1].get_xlabel() == "x[1, 2]"


@pytest.mark.parametrize(
    ("shape", "side"), [((20, 6, 6), 5), ((20, 1, 8, 8), 5), ((90, 3, 8, 5), 8)]
)
def test_images_stand_in_a_grid(shape, side):
    draws = replace(poe.sample(UNIT, 10, seed=0), x=torch.rand(shape), target=None)
    (axes,) = draws.plot().axes
    image = axes.images[0].get_array()
    assert image.shape[1] % side == 0 and (image.ndim == 3) == (len(shape) == 4 and shape[1] == 3)
    assert axes.get_title(loc="left") == "unit"


def test_a_picture_says_what_is_not_trusted_and_files_have_no_density(tmp_path):
    draws = poe.sample(UNIT & Gauss(1.0), 100, seed=0)
    bad = draws.warned("chains disagree; try more")
    assert bad.plot().axes[0].get_title() == "NOT TRUSTED: chains disagree; try more"
    assert draws.plot().axes[0].get_title() == ""
    draws.save(tmp_path / "draws")
    loaded = poe.Draws.load(tmp_path / "draws")
    assert draws.target is not None and loaded.target is None
    assert loaded.plot().axes[0].collections[:] == [] and len(loaded.plot().axes[0].lines) == 1


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    draws = poe.sample(UNIT, 50, seed=0)
    draws.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"a.doc does not end in a format of pictures: .*png"):
        draws.plot(tmp_path / "a.doc")
    with pytest.raises(ValueError, match="nothing to plot"):
        replace(draws, x=draws.x[:0]).plot(tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    draws = poe.sample(UNIT, 50, seed=0)
    figures._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'product-of-experts\[plot\]'"):
        draws.plot()
    assert "<img" not in draws._repr_html_() and "TRUSTED" in draws._repr_html_()
    monkeypatch.undo()
    assert "<img" in draws._repr_html_()


# ---- notebooks


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
