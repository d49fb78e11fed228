"""The command as a process: signals at any moment, closed pipes, full disks."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import widelimit as wl

CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process has inherited
from widelimit.cli import main
main()
"""
X = np.random.default_rng(0).standard_normal((1500, 4))
IMPORTS = "import time:"


@contextlib.contextmanager
def started(folder, *arguments, **streams):
    """The command, which says in folder/err which module it has imported."""
    command = [sys.executable, "-X", "importtime", "-c", CODE, *map(str, arguments)]
    with (folder / "err").open("w") as err, subprocess.Popen(command, stderr=err, **streams) as process:
        yield process


def wait_for(process, happened):
    while not happened():
        assert process.poll() is None
        time.sleep(0.001)


def imported(folder, module):
    return any(line.rpartition("|")[2].strip() == module for line in (folder / "err").read_text().splitlines())


def messages(folder):
    return [line for line in (folder / "err").read_text().splitlines() if not line.startswith(IMPORTS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("signals") / "X.npy"
    np.save(path, X)
    return path


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "typer"),
        (signal.SIGINT, "widelimit.cli.app"),
        (signal.SIGINT, "numpy._core._multiarray_umath"),
        (signal.SIGINT, "jax._src.core"),
        (signal.SIGINT, "widelimit.compute.tiles"),
        (signal.SIGINT, "zarr.json"),
        (signal.SIGINT, "c/0/0"),
        (signal.SIGTERM, "typer.main"),
        (signal.SIGTERM, "jax._src.interpreters.mlir"),
        (signal.SIGTERM, "c/1/1"),
    ],
)
def test_a_signal_ends_the_command_at_any_moment(data, tmp_path, number, moment):
    store = tmp_path / "K.zarr"
    with started(tmp_path, "kernel", data, "--out", store, "--depth", 1) as process:
        wait_for(process, lambda: (store / moment).exists() or imported(tmp_path, moment))
        process.send_signal(number)
        assert process.wait(timeout=10) == 128 + number
    lines = messages(tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("widelimit: interrupted" if number == signal.SIGINT else "widelimit: terminated")
    if moment == "c/0/0":
        assert lines[0].endswith(f"the finished tiles are in {store}, and the same command goes on with them.")
        k = wl.ntk(wl.mlp(depth=1))
        whole = wl.stored_gram(k, X, store)[:]
        np.testing.assert_allclose(whole, k.gram(X), rtol=1e-13)


def test_an_ignored_signal_stays_ignored():
    code = CODE.replace("default_int_handler", "SIG_IGN").replace("main()", "main(['--version'])")
    code = code.replace("from widelimit", "import os; os.kill(os.getpid(), signal.SIGINT)\nfrom widelimit")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stderr == b""


def test_an_interrupted_write_leaves_no_file(tmp_path):
    """A signal inside of C code, where no exception can be raised, too."""
    code = (
        "import os, signal, sys, time; from pathlib import Path; from widelimit.cli import interruption\n"
        "interruption.listen()\n"
        "from widelimit.cli.files import check_output; from widelimit.writing import atomic_write\n"
        f"out = Path({str(tmp_path / 'out.csv')!r})\n"
        "check_output(out, ['.csv'])\n"
        "with atomic_write(out) as stream:\n"
        "    stream.write(b'half'); stream.flush(); print(len(list(out.parent.iterdir())), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout, run.stderr) == (143, "1\n", "widelimit: terminated.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "code", "said"), [("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"), ("leave(3)", 3, "")]
)
def test_an_error_at_the_end_does_not_keep_the_process(tmp_path, ending, code, said):
    script = (
        "import os, signal, time; from pathlib import Path\n"
        "from widelimit.cli.interruption import at_end, clear_at_end, leave, listen\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "listen()\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "for name in 'ab':\n"
        "    clear_at_end(folder / name); (folder / name).mkdir()\n"
        "    (folder / name / f'.x.{os.getpid()}.part').mkdir()\n"  # which cannot be unlinked
        "    (folder / name / f'.y.{os.getpid()}.part').touch()\n"
        "at_end(lambda done: 1 / 0)\n"
        "at_end(lambda done: (folder / 'last').touch())\n"
        f"{ending}\n"
        "time.sleep(5)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stderr) == (code, f"widelimit: {said}.\n" if said else "")
    assert (tmp_path / "last").exists()
    assert len(list(tmp_path.glob("?/.y.*"))) == (0 if said else 2)


@pytest.mark.parametrize("arguments", [["info"], ["--help"]])
def test_a_closed_pipe_is_quiet(tmp_path, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with started(tmp_path, *arguments, stdout=writer) as process:
        os.close(writer)
    assert (process.returncode, messages(tmp_path)) == (141, [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["info"], ["fit", "--help"]])
def test_a_full_disk_is_one_line(tmp_path, arguments):
    with open("/dev/full", "w") as full, started(tmp_path, *arguments, stdout=full) as process:
        pass
    assert process.returncode == 1
    assert len(messages(tmp_path)) == 1
    assert "No space left on device" in messages(tmp_path)[0]


DEFERRED = """
import sys
from widelimit.cli import imports

if sys.argv[1:]:
    imports.defer()
from widelimit.cli import models
print("scipy.stats._stats_py" in sys.modules, "pandas.core" in sys.modules)
import pandas
from scipy.stats import norm
import scipy.stats._distn_infrastructure
print(norm.cdf(0.0), scipy.stats.rankdata([3, 1])[0], pandas.DataFrame({"a": [1]}).shape)
"""


@pytest.mark.parametrize(("given", "loaded"), [(["deferred"], "False False"), ([], "True True")])
def test_what_scikit_learn_imports_for_little_comes_at_its_first_use(given, loaded):
    run = subprocess.run([sys.executable, "-c", DEFERRED, *given], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == [loaded, "0.5 2.0 (1, 1)"], run.stderr
