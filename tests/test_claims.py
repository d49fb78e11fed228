"""Claims hold, their controls fail, planted errors are found, the report says so."""

import json
import re

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from commands import invoke
from widelimit.claims import NAMES, jacot_figures
from widelimit.claims.base import Check, Effort, Measurement, load
from widelimit.claims.finite import output_covariances, outputs, parameters
from widelimit.claims.run import CONTROL_PASSES, FAILED, HELD, Outcome
from widelimit.claims.statistics import power_law
from widelimit.pages import number


def outcome(checks, controls):
    return Outcome("gram_matrices", "quick", checks, controls, {}, {}, 1.0, "")


def test_a_verdict_needs_checks_that_hold_and_controls_that_fail():
    good, bad, lost = (Check("x", v, 0.0, 1.0, "because") for v in (0.5, 2.0, float("nan")))
    assert outcome((good,), (bad,)).verdict == HELD
    assert outcome((good, bad), (bad,)).verdict == FAILED
    assert outcome((lost,), (bad,)).verdict == FAILED
    assert outcome((), (bad,)).verdict == FAILED
    assert outcome((good,), (bad, good)).verdict == CONTROL_PASSES
    assert outcome((good,), ()).verdict == CONTROL_PASSES


WIDTHS = np.array([32.0, 64.0, 128.0, 256.0, 512.0])
SIGMA = 0.05
"""Relative errors of the means: those of their logarithms."""
TRUE_ERROR = SIGMA / np.sqrt(np.sum((np.log(WIDTHS) - np.log(WIDTHS).mean()) ** 2))
"""Of a slope by least squares with equal errors, known here."""


def slopes(fit=power_law):
    """400 fits to 3 width^(-1/2) with normal errors, seed 0."""
    mean, rng = 3 * WIDTHS**-0.5, np.random.default_rng(0)
    return [fit(WIDTHS, mean * np.exp(SIGMA * rng.standard_normal(5)), SIGMA * mean) for _ in range(400)]


def deviations(fits):
    """Of 400 slopes in their known error: mean and spread less what they must be, in standard errors."""
    z = (np.array([fit.slope for fit in fits]) + 0.5) / TRUE_ERROR
    return z.mean() * np.sqrt(400), (z.std(ddof=1) - 1) * np.sqrt(2 * 399)


def test_a_power_law_is_found():
    exact = power_law(WIDTHS, 3 * WIDTHS**-0.5, SIGMA * 3 * WIDTHS**-0.5)
    assert exact.slope == pytest.approx(-0.5, abs=1e-14)
    assert exact.intercept == pytest.approx(np.log(3))
    assert np.abs(deviations(slopes())).max() < 4
    for planted in (
        lambda x, y, e: power_law(x, y, e)._replace(slope=1.1 * power_law(x, y, e).slope),
        lambda x, y, e: power_law(x[:4], y[:4], e[:4]),  # a point is lost
        lambda x, y, e: power_law(x, y, e * np.array([1, 1, 1, 1, 0.1])),  # weights that are off
    ):
        assert np.abs(deviations(slopes(planted))).max() > 4


def test_the_error_of_a_slope_follows_from_the_errors_and_from_the_scatter():
    """About the line by sigma: as given. By k sigma sqrt(3/4): chi^2 = k^2 of 3 degrees of freedom, errors times k."""
    mean = 3 * WIDTHS**-0.5
    residual = np.array([1.0, -2.0, 0.0, 2.0, -1.0])  # orthogonal to constants and lines
    residual *= np.sqrt(3) / np.linalg.norm(residual)
    for k in (0.0, 0.5, 1.0, 3.0):
        found = power_law(WIDTHS, mean * np.exp(k * SIGMA * residual), SIGMA * mean * np.exp(k * SIGMA * residual))
        assert found.error == pytest.approx(max(k, 1.0) * TRUE_ERROR, rel=1e-10)
        assert found.slope == pytest.approx(-0.5, abs=1e-12)


def printed_dual(monkeypatch):
    """(3.6): every coefficient by the sum of all residuals."""
    import widelimit as wl

    true = wl.LinearModel.dual_descent

    def dual_descent(self, X, y, **options):
        alphas = true(self, X, y, **options)
        return np.broadcast_to(alphas.mean(axis=1, keepdims=True), alphas.shape)

    monkeypatch.setattr(wl.LinearModel, "dual_descent", dual_descent)


CHEAP = ["--quick", "--only", "primal_is_dual", "--only", "minimum_norm_weights"]


def test_verify_writes_one_page_with_all_in_it_and_resumes(tmp_path):
    out, kept = tmp_path / "report.html", tmp_path / "kept"
    command = ["verify", *CHEAP, "--out", str(out), "--keep", str(kept)]
    first = invoke(*command)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"Report: {out}"
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere
    assert "2 of 2 claims hold" in page
    assert "def violate(" in page
    document = json.loads(out.with_suffix(".json").read_text())
    assert document["holds"]
    assert [claim["name"] for claim in document["claims"]] == ["minimum_norm_weights", "primal_is_dual"]
    assert document["claims"][0]["seed"] == load("minimum_norm_weights").seed
    files = sorted(kept.iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    again = invoke(*command, "--json")
    assert json.loads(again.stdout)["claims"] == document["claims"]  # seconds included: nothing was run again
    assert [file.stat().st_mtime_ns for file in files] == stamps
    files[0].write_bytes(files[0].read_bytes()[:-20])
    assert invoke(*command).exit_code == 0
    assert files[0].stat().st_mtime_ns > stamps[0]  # a damaged one is measured again


def test_verify_fails_where_a_claim_does(tmp_path, monkeypatch):
    printed_dual(monkeypatch)
    run = invoke("verify", "--quick", "--only", "primal_is_dual", "--out", str(tmp_path / "r.html"))
    assert run.exit_code == 1
    assert run.stdout.startswith("fails")
    assert "required 0 to" in run.stdout
    wrong = invoke("verify", "--only", "primal", "--out", str(tmp_path / "r.html"))
    assert wrong.exit_code == 2
    assert "there is no claim 'primal'; the claims are gaussian_vectors," in wrong.stderr


def test_claims_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = invoke("verify", "--list").stdout
    assert [name for name in NAMES if f"\n{name} " in f"\n{text}"] == list(NAMES)
    assert max(map(len, text.splitlines())) <= 80
    only = ("verify", "--list", "--only", "gram_matrices", "--json")
    assert json.loads(invoke(*only).stdout) == {"gram_matrices": load("gram_matrices").statement}
    assert "--out does not apply" in invoke(*only, "--out", "r.csv").stderr
    assert not list(tmp_path.iterdir())


def test_numbers_in_the_report():
    assert [number(v) for v in (0.25, -1.5, 1234567.0, 2.2e-16)] == [
        "0.25",
        "&minus;1.5",
        "1.235&middot;10<sup>6</sup>",
        "2.2&middot;10<sup>&minus;16</sup>",
    ]
    assert [number(v) for v in (np.inf, -np.inf, np.nan)] == ["&infin;", "&minus;&infin;", "nan"]


@pytest.fixture(scope="module")
def mnist_file(tmp_path_factory):
    """scikit-learn's digits in the shape of MNIST: 24 x 24 in a frame of 28 x 28."""
    digits = np.kron(load_digits().images[:520], np.ones((3, 3))) * 15.9
    path = tmp_path_factory.mktemp("images") / "mnist.npz"
    np.savez(path, X_train=np.pad(digits, ((0, 0), (2, 2), (2, 2))).astype(np.uint8), y_train=np.zeros(520))
    return path


def test_figure_three_holds_for_a_file_of_images(mnist_file):
    from widelimit.cli.verification import read_mnist

    images = read_mnist(mnist_file)
    assert images.pixels.shape == (512, 784)
    assert 0.9 < images.pixels.max() <= 1
    checks, data = jacot_figures.figure_three(Effort.QUICK, images)
    assert all(check.holds for check in checks)
    assert data["is MNIST"]


def test_verify_passes_the_images_on_and_keeps_their_results_apart(mnist_file, tmp_path, monkeypatch):
    seen = []

    def found(value):
        def measured(effort, images):
            seen.append((effort, images.is_mnist, len(images.pixels)))
            return Measurement((Check("x", value, 0.0, 1.0, "because"),), {})

        return measured

    monkeypatch.setattr(jacot_figures, "measure", found(0.0))
    monkeypatch.setattr(jacot_figures, "violate", found(2.0))
    command = ["verify", "--only", "jacot_figures", "--out", tmp_path / "r.html", "--keep", tmp_path / "kept"]
    assert invoke(*command).exit_code == 0
    with_file = invoke(*command, "--mnist", mnist_file, "--json")
    assert json.loads(with_file.stdout)["claims"][0]["reads"].startswith("images ")
    assert seen == [(Effort.FULL, False, 1797)] * 2 + [(Effort.FULL, True, 512)] * 2
    invoke(*command, "--mnist", mnist_file)
    assert len(seen) == 4


BAD_IMAGES = {
    "no array X_train in it, but other": {"other": np.zeros(3)},
    "has shape (9, 28, 28); (n, 28, 28) with n >= 512 is required": {"X_train": np.zeros((9, 28, 28), np.uint8)},
    "has shape (600, 784)": {"x_train": np.zeros((600, 784), np.uint8)},
    "from 0.5 to 0.5; whole grey values": {"X_train": np.full((512, 28, 28), 0.5)},
    "the largest grey value is 0; the images are black": {"X_train": np.zeros((512, 28, 28), np.uint8)},
}


@pytest.mark.parametrize("text", BAD_IMAGES)
def test_files_without_such_images_are_refused(text, tmp_path):
    np.savez(tmp_path / "bad.npz", **BAD_IMAGES[text])
    found = invoke("verify", "--quick", "--out", tmp_path / "r.html", "--mnist", tmp_path / "bad.npz")
    assert found.exit_code == 2
    assert text in found.stderr
    assert not (tmp_path / "r.html").exists()


def test_paths_that_are_no_archives_and_claims_that_read_none(mnist_file, tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    for arguments, text in (
        (["--mnist", tmp_path / "none.npz"], "there is no such file"),
        (["--mnist", tmp_path / "text.npz"], "not an .npz file of images"),
        (["--mnist", mnist_file, "--only", "gram_matrices"], "which --only leaves out; add --only jacot_figures."),
    ):
        found = invoke("verify", "--quick", "--out", tmp_path / "r.html", *arguments)
        assert found.exit_code == 2
        assert text in found.stderr


def test_drawn_parameters_have_the_shapes_of_init_and_outputs_the_covariance_given_the_hidden_layers():
    """20,000 networks: E f f^T = E K_n within 5 standard errors."""
    import widelimit as wl

    net, X = wl.mlp(depth=3, weight_std=2**0.5, bias_std=0.3), np.random.default_rng(0).standard_normal((3, 2))
    drawn = parameters(net, (2, 8, 4, 1), count=5, rng=np.random.default_rng(1))
    made = net.init_many(range(5), input_dim=2, width=(8, 4), dtype=np.float64)
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, made)
    f = outputs(net, X, widths=(8, 4), output_dim=1, count=20_000, seed=2)[:, :, 0]
    products = f[:, :, None] * f[:, None, :]
    K = output_covariances(net, X, widths=(8, 4), count=20_000, seed=3)
    error = np.sqrt((products.var(axis=0) + K.var(axis=0)) / 20_000)
    assert np.abs((products.mean(axis=0) - K.mean(axis=0)) / error).max() < 5
    assert np.abs((products.mean(axis=0) - 1.3 * K.mean(axis=0)) / error).max() > 5
