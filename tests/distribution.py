"""Build wheel and sdist, install them in empty environments, and use them there: `make dist` runs this.

With no extras the kernels, posteriors, flows and the command line work, and what an extra brings is named by its line;
with all extras estimators, tables and figures work.
"""

import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
UV = ROOT / ".venv-uv" / "bin" / "uv"
DIST, PLACE = ROOT / "dist", ROOT / "build" / "installed"
LIGHT = """
import importlib.util
import pathlib
import numpy as np
import widelimit as wl

assert "site-packages" in wl.__path__[0], wl.__path__
assert not any(importlib.util.find_spec(name) for name in ("sklearn", "polars", "matplotlib", "distributed", "torch"))
X = np.random.default_rng(0).standard_normal((12, 3))
y = np.sin(X[:, 0])
k = wl.ntk(wl.mlp(depth=3, bias_std=0.1))
K = k.gram(X)
assert K.shape == (12, 12) and np.allclose(K, K.T) and np.linalg.eigvalsh(K)[0] > 0
assert np.allclose(wl.posterior(k, X, y, noise=1e-6).mean(X), y, atol=1e-3)
assert np.allclose(wl.gradient_flow(k, X, y).predict(X, np.inf), y)
for name in ("NNGPRegressor", "plot_importance", "TableEncoder", "load"):
    try:
        getattr(wl, name)
    except ModuleNotFoundError as error:
        assert str(error).endswith('pip install "widelimit[tables]"') and "\\n" not in str(error), error
    else:
        raise AssertionError(name)
try:
    wl.generalization(wl.rbf(1.0), X, y, sizes=[3, 6]).plot()
except ModuleNotFoundError as error:
    assert str(error) == 'a figure needs matplotlib: pip install "widelimit[plots]"', error
else:
    raise AssertionError("a figure without matplotlib")
"""
FULL = """
import numpy as np
import widelimit as wl

X = np.random.default_rng(0).standard_normal((30, 2))
y = np.sin(X[:, 0])
mean, std = wl.NNGPRegressor(input_scales=None, noise=1e-3, output_scale=1.0).fit(X, y).predict(X, return_std=True)
assert np.allclose(mean, y, atol=0.1) and np.all(std > 0)
wl.generalization(wl.rbf(1.0), X, y, sizes=[3, 6]).plot().figure.savefig("curve.png")
np.savetxt("table.csv", np.column_stack([X, y]), delimiter=",", header="a,b,y", comments="")
"""


def run(*command, code=0):
    """Run a command outside of the source tree, and return what it printed on both streams."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=PLACE,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    text = done.stdout + done.stderr
    assert done.returncode == code, (command, done.returncode, text)
    return text


def environment(name, what):
    """Make an environment that holds what is given and what that needs; return its folder of programs."""
    print(f"installing {what} ...", flush=True)
    run(UV, "venv", "--quiet", "--python", sys.executable, PLACE / name)
    programs = PLACE / name / "bin"
    run(UV, "pip", "install", "--quiet", "--python", programs / "python", what)
    return programs


def check_contents(wheel):
    """Compare the wheel with the sources, file by file: pages, styles and stubs are in it, too."""
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == sources, packed ^ sources


def check_light(programs):
    """Use an installation without extras."""
    run(programs / "python", "-I", "-W", "error", "-c", LIGHT)
    assert "Commands" in run(programs / "widelimit", "--help")
    assert "widelimit" in run(programs / "widelimit", "info", "--json")
    (PLACE / "t.csv").write_text("a,y\n1,2\n")
    said = run(programs / "widelimit", "fit", "t.csv", "--target", "y", "--model", "m.npz", code=1)
    assert said.count("\n") == 1, said
    assert said.endswith('pip install "widelimit[tables]"\n'), said


def check_full(programs):
    """Use an installation with all extras."""
    run(programs / "python", "-I", "-W", "error", "-c", FULL)
    fit = ("fit", "table.csv", "--target", "y", "--model", "model.npz", "--report", "fit.html")
    run(programs / "widelimit", *fit)
    assert "<style>" in (PLACE / "fit.html").read_text()
    run(programs / "widelimit", "predict", "model.npz", "table.csv", "--std", "--out", "predicted.csv")
    assert len((PLACE / "predicted.csv").read_text().splitlines()) == 31


def main():
    """Build, look inside, install, use."""
    for folder in (DIST, PLACE):
        shutil.rmtree(folder, ignore_errors=True)
    PLACE.mkdir(parents=True)
    run(UV, "build", "--quiet", "--out-dir", DIST, ROOT)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    check_contents(wheel)
    check_light(environment("wheel", wheel))
    check_light(environment("sdist", sdist))
    check_full(environment("full", f"{wheel}[all]"))
    shutil.rmtree(PLACE)
    print(f"{wheel.name} and {sdist.name} are in dist/, were installed without and with extras, and work.")


if __name__ == "__main__":
    main()
