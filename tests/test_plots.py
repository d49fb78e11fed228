import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import widelimit as wl
from widelimit import plots

X = np.array([[-1.0], [-0.4], [0.3], [1.2]])
Y = np.array([0.5, -0.2, 0.1, 1.0])
Z = np.linspace(-2, 2, 41)[:, None]


@pytest.fixture(scope="module")
def net():
    return wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3)


@pytest.fixture(scope="module")
def post(net):
    return wl.posterior(wl.nngp(net), X, Y, noise=0.01)


@pytest.fixture(scope="module")
def trained(net):
    return wl.trained_ensemble(net, X, Y)


def drawn(axes):
    """Curves by label, and the lower and upper edge of the band at the given x."""
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    vertices = axes.collections[0].get_paths()[0].vertices

    def edges(x):
        at = vertices[np.abs(vertices[:, 0] - x) < 1e-12, 1]
        return at.min(), at.max()

    return curves, edges


def test_posterior_band_is_the_posterior(post):
    axes = Figure().subplots()
    shuffled = np.random.default_rng(0).permutation(Z)
    assert plots.posterior(post, shuffled, axes=axes) is axes
    curves, edges = drawn(axes)
    np.testing.assert_allclose(curves["posterior mean"][:, 0], Z[:, 0])
    np.testing.assert_allclose(curves["posterior mean"][:, 1], post.mean(Z))
    np.testing.assert_allclose(curves["data"], np.c_[X[:, 0], Y])
    mean, sd = post.mean(Z), np.sqrt(post.variance(Z))
    for i in (0, 17, 40):
        np.testing.assert_allclose(edges(Z[i, 0]), (mean[i] - 1.96 * sd[i], mean[i] + 1.96 * sd[i]), atol=1e-4 * sd[i])


def test_ensemble_goes_from_the_prior_to_the_data(net, trained):
    start, end = Figure().subplots(1, 2)
    assert plots.ensemble(trained, Z, 0.0, axes=start) is start
    curves, edges = drawn(start)
    assert (curves["ensemble mean"][:, 1] == 0).all()
    sd = np.sqrt(wl.nngp(net).diag(Z[[3]])[0])
    np.testing.assert_allclose(edges(Z[3, 0]), (-1.96 * sd, 1.96 * sd), rtol=1e-4)
    plots.ensemble(trained, np.concatenate([Z, X]), np.inf, axes=end)
    curves, edges = drawn(end)
    mean = dict(curves["ensemble mean"])
    for x, y in zip(X[:, 0], Y, strict=True):
        assert mean[x] == pytest.approx(y, abs=1e-6)
        # sqrt of a variance that is rounding: 1.96 sqrt(n eps k) is about 1e-7.
        assert np.ptp(edges(x)) < 1e-5
    assert np.ptp(edges(-2.0)) > 0.1


def test_more_than_one_dimension_is_refused(net):
    wide = np.c_[X, X]
    axes = Figure().subplots()
    with pytest.raises(ValueError, match="2 features and 1 outputs"):
        plots.posterior(wl.posterior(wl.nngp(net), wide, Y, noise=0.1), np.c_[Z, Z], axes=axes)
    with pytest.raises(ValueError, match="1 features and 2 outputs"):
        plots.ensemble(wl.trained_ensemble(net, X, np.c_[Y, Y]), Z, 1.0, axes=axes)
    assert not axes.lines


@pytest.mark.parametrize("times", [[0.0, 2.5, np.inf], [0.0, 0.1, 1.0, 10.0, np.inf]])
def test_learning_has_a_panel_for_every_time(post, trained, times):
    figure = plots.learning(post, trained, Z, np.array(times))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in panels]
    assert len(panels) == 1 + len(times)
    assert titles[0] == "NNGP posterior"
    assert [title.partition("t = ")[2].rstrip("$") for title in titles[1:-1]] == [f"{t:g}" for t in times[:-1]]
    assert "infty" in titles[-1]
    assert len({axes.get_ylim() for axes in panels}) == 1
    low, high = panels[0].get_ylim()
    assert low < Y.min() < Y.max() < high
    assert sum(axes.get_legend() is not None for axes in panels) == 2
    assert figure.get_supxlabel()
    assert figure.get_supylabel()


def test_pyplot_is_never_loaded():
    code = "import sys, widelimit.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


COLOUR = re.compile(r"""["']#[0-9a-fA-F]{6}["']""")
"""A colour in code; only plots.py has any."""


def test_colours_are_those_of_the_house():
    root = Path(__file__).parents[1]
    files = [path for folder in ("src", "docs", "benchmarks") for path in (root / folder).rglob("*.py")]
    files = [path for path in files if "generated" not in path.parts]  # by `make docs`
    assert {path.relative_to(root).as_posix() for path in files if COLOUR.search(path.read_text())} == {
        "src/widelimit/plots.py"
    }
    assert plots.BAYES in (root / "src" / "widelimit" / "pages.css").read_text()  # the accent of pages
    assert COLOUR.search('color="#4a7c3a"')


BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}
"""Linear RGB as seen with full colour blindness: Machado, Oliveira and Fernandes 2009, table of severity 1."""


def lab(color, blindness):
    """CIE L*a*b* (D65) of a colour as it is seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089]) if seen.any() else np.full(3, 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors):
    """The smallest distance of two of the colours, over all kinds of colour blindness; a just noticeable one is 2.3."""
    pairs = itertools.combinations(colors, 2)
    return min(float(np.linalg.norm(lab(a, kind) - lab(b, kind))) for a, b in pairs for kind in BLINDNESS)


def test_the_colour_blind_distinguish_the_colours():
    assert nearest(plots.LINES) > 20
    assert nearest((plots.BAYES, plots.DESCENT, plots.DATA)) > 20
    assert nearest((plots.DESCENT, "#4a7c3a")) < 20  # red and green of equal lightness


def test_the_settings_of_the_house_are_those_of_its_frames():
    with rc_context(plots.HOUSE):
        axes = Figure().subplots()
    dressed = plots.dress(Figure().subplots(), xlabel="x")
    for side in ("top", "right"):
        assert not axes.spines[side].get_visible()
        assert not dressed.spines[side].get_visible()
    assert axes.xaxis.label.get_size() == dressed.xaxis.label.get_size() == 9
    assert axes.title.get_size() == dressed.title.get_size()
