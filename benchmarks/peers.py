"""Libraries in environments of their own (peers.sh) are asked over a pipe; one that waits costs no time."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("PEERS", HERE.parent / ".venv-peers"))


class Peer:
    """A peer is a process that answers JSON lines: SCRIPT run by Python of environment NAME, with extra variables."""

    def __init__(self, name: str, script: str, **variables: str) -> None:
        python = FOLDER / name / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"there is no {python}: run benchmarks/peers.sh first (or set PEERS to its folder)")
        self._process = subprocess.Popen(
            [python, HERE / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3"} | variables,
        )

    def ask(self, **question: Any) -> Any:
        """Return the answer to one question, after as long as it takes."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the peer failed at {question}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
