"""Pictures of draws, by the numbers in them: densities of scipy, level sets of known radius."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import experts
import poe
from poe.plotting import continuous, figures
from tests.poe.targets import Gauss, Raw

pytest.importorskip("matplotlib")

UNIT = Gauss(0.0, name="unit")


def lines(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.lines}


def heights(axes) -> np.ndarray:
    return np.array([bar.get_height() for bar in axes.patches])


def test_a_histogram_stands_against_the_density_of_scipy():
    target = experts.Normal([0.0], [1.0], name="a") & experts.Normal([2.0], [1.0], name="b")
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
        torch.distributions.Uniform(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])),
        name="box",
    )
    (axes,) = poe.sample(box, 300, seed=0).plot().axes
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
