"""The examples of docs/cluster.md run: programs on a cluster here, the script and the manifest by their commands."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import widelimit as wl
from widelimit.cli.kernel import DEFAULTS

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
X = np.random.default_rng(5).standard_normal((60, 3))
KERNEL = wl.ntk(wl.mlp(depth=3, bias_std=0.1))
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::DeprecationWarning", "default::UserWarning"
)


def blocks(heading, language):
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name in language.split()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_for_sbatch_is_sound():
    (script,) = blocks("A SLURM queue", "bash")
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(directives)] == directives  # SLURM reads no further than the first command
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert "unexpected" in subprocess.run(["bash", "-n"], input=script + "(", text=True, capture_output=True).stderr


distributed = pytest.importorskip("distributed")
from test_cluster import bucket, workplace  # noqa: E402, F401


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a user: X.npy, and an environment in .venv whose commands are those of the tests."""
    np.save(tmp_path / "X.npy", X)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    commands = {
        "widelimit": "from widelimit.cli import main",
        "dask": "from dask.__main__ import main",  # it spawns processes, which import it
    }
    for name, code in commands.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f"#!{sys.executable}\n{code}\nif __name__ == '__main__':\n    main()\n")
        path.chmod(0o755)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_script_for_sbatch_runs_and_runs_again(here, monkeypatch):
    """In the place of srun, which would start a worker on each node, a script starts two here."""
    (script,) = blocks("A SLURM queue", "bash")
    (here / "gram.sh").write_text(script)
    srun = here / ".venv" / "bin" / "srun"
    srun.write_text(
        '#!/bin/bash\n[[ $1 == --kill* ]] && shift\n"$@" & "$@" & trap "kill $(echo $(jobs -p))" TERM; wait\n'
    )
    srun.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for _ in range(2):
        code, text = batch("gram.sh")
        assert code == 0, text
        assert "ntk of 60 inputs:" in text
    k = wl.ntk(wl.mlp(**DEFAULTS))
    assert np.allclose(zarr.open_array("K.zarr", mode="r")[:], k.gram(X), rtol=1e-12)


@pytest.mark.parametrize("broken", ["srun", "dask"])
def test_the_job_of_sbatch_ends_if_no_worker_or_scheduler_starts(broken, here, monkeypatch):
    (script,) = blocks("A SLURM queue", "bash")
    (here / "gram.sh").write_text(script)
    for name in {"srun", broken}:
        (here / ".venv" / "bin" / name).write_text("#!/bin/bash\nexit 3\n")
        (here / ".venv" / "bin" / name).chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    code, text = batch("gram.sh")
    assert code != 0, text


def batch(script):
    """Run it as SLURM does, its output in a file; the exit code, and the output."""
    with open("slurm.out", "w+") as out:
        code = subprocess.run(["bash", script], stdout=out, stderr=out, timeout=200).returncode
        out.seek(0)
        return code, out.read()


@pytest.mark.parametrize("heading", ["One machine", "Dask on one machine"])
@pytest.mark.usefixtures("workplace", "here")
def test_the_examples_of_one_machine_run(heading):
    assert run(blocks(heading, "py python")[0])["K"].shape == (200, 200)


def run(code):
    namespace = {"__name__": "__main__"}
    exec(compile(code, "cluster.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("heading", "module", "name"),
    [
        ("A SLURM queue", "dask_jobqueue", "SLURMCluster"),
        ("Kubernetes", "dask_kubernetes.operator", "KubeCluster"),
    ],
)
@pytest.mark.usefixtures("workplace", "here", "bucket")
def test_the_examples_of_many_machines_run_on_a_cluster_here(heading, module, name, monkeypatch):
    """Where the package of their cluster is installed, it says if it takes the options."""
    (code,) = blocks(heading, "py")
    asked = []

    class Here(distributed.LocalCluster):
        def __init__(self, **options):
            asked.append(options)
            amazon = {name: value for name, value in os.environ.items() if name.startswith("AWS")}
            settings = {"dashboard_address": None, "memory_limit": 0, "silence_logs": 50, "env": amazon}
            super().__init__(1, threads_per_worker=1, **settings)

        def adapt(self, *, minimum_jobs, maximum_jobs):
            assert minimum_jobs == maximum_jobs

    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: Here}))
    found = run(code)
    assert np.allclose(found["K"][:], KERNEL.gram(X), rtol=1e-12)
    assert found["cluster"].status == distributed.Status.closed
    monkeypatch.delitem(sys.modules, module)
    if name == "SLURMCluster":
        jobqueue = pytest.importorskip("dask_jobqueue")
        with jobqueue.SLURMCluster(**asked[0], scheduler_options={"dashboard_address": None}) as slurm:
            assert "--cpus-per-task=16" in slurm.job_script()
            assert "--nthreads 16" in slurm.job_script()


@pytest.mark.usefixtures("bucket")
def test_the_manifest_for_kubernetes_is_sound_and_its_commands_run(here):
    """Labels match; scheduler and worker are started by the manifest's commands, here instead of in pods."""
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("Kubernetes", "yaml")
    service, *deployments = yaml.safe_load_all(text)
    commands = {}
    for each in deployments:
        template = each["spec"]["template"]
        assert each["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        (container,) = template["spec"]["containers"]
        commands[each["metadata"]["name"]] = container["command"]
    assert service["spec"]["selector"] == deployments[0]["spec"]["template"]["metadata"]["labels"]
    assert f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" in commands["worker"]
    port = str(distributed.utils.open_port("127.0.0.1"))
    local = {"tcp://scheduler:8786": f"tcp://127.0.0.1:{port}", "8786": port, ":8787": ":0"}
    (line,) = re.findall(r"widelimit kernel .*", "".join(PAGE.split("## Kubernetes\n")[1]))
    environment = {**os.environ, "PATH": f"{here}/.venv/bin:{os.environ['PATH']}"}
    with ExitStack() as stack:
        for command in commands.values():
            process = subprocess.Popen(
                [local.get(word, word) for word in command],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        distributed.Client(f"tcp://127.0.0.1:{port}", timeout=60).close()
        line = line.replace("tcp://127.0.0.1:8786", f"tcp://127.0.0.1:{port}").replace("K.zarr", "M.zarr")
        found = subprocess.run(line.split(), env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("ntk of 60 inputs:")
