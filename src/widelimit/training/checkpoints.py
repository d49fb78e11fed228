"""A checkpoint of training is one safetensors file, replaced as a whole, with the settings of the run it belongs to."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from widelimit.fingerprints import sha256
from widelimit.training.history import History, Recorder
from widelimit.training.optimisers import OptimiserState
from widelimit.writing import atomic_write

FORMAT = "widelimit-training"
VERSION = 1


class TrainingCheckpoint(NamedTuple):
    """A checkpoint is the file of a run, the settings that make it this run, and the seconds between writes."""

    path: Path
    settings: dict[str, Any]
    seconds: float


def digest(tree: Any) -> str:
    """Hash the values, shapes and dtypes of a pytree of arrays."""
    return sha256(*(np.asarray(leaf) for leaf in jax.tree.leaves(tree)))


def settings(recorder: Recorder, choices: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs must share to be one: data, start, loss and all choices for steps and records."""
    problem = recorder.problem
    return {
        "X": digest(problem.X),
        "y": digest(problem.y),
        "params": digest(problem.f.params),
        "probes": digest(recorder.probes),
        "kernel_points": len(recorder.points),
        "loss": f"{type(problem.loss).__name__} {digest(problem.loss)[:16]}",
        "apply": getattr(problem.f.apply, "__qualname__", type(problem.f.apply).__name__),
        "ensemble": problem.members if problem.many else 0,
        **choices,
    }


def _tensors(state: OptimiserState, history: History) -> dict[str, np.ndarray]:
    leaves = {f"state/{i}": np.asarray(_plain(leaf)) for i, leaf in enumerate(jax.tree.leaves(state))}
    records = {f"history/{f.name}": np.asarray(getattr(history, f.name)) for f in fields(History)}
    return {name: np.asarray(array, order="C") for name, array in (leaves | records).items()}


def _plain(leaf: Any) -> Any:
    """Return a leaf as numbers: a JAX random key by its data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key))


def save(checkpoint: TrainingCheckpoint, state: OptimiserState, history: History) -> None:
    """Replace the file by this state and these records."""
    tensors = _tensors(state, history)
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "settings": json.dumps(checkpoint.settings),
        "sha256": digest([tensors[name] for name in sorted(tensors)]),
    }
    with atomic_write(checkpoint.path, unfinished=f"{checkpoint.path.name}.part") as file:
        file.write(safetensors.numpy.save(tensors, about))


def load(checkpoint: TrainingCheckpoint, like: OptimiserState) -> tuple[OptimiserState, History]:
    """Load the state, of the structure of `like`, and records.

    Raises:
        ValueError: not a checkpoint, a damaged one, that of a newer version or of another run. The file is left alone.
    """
    path = checkpoint.path
    advice = "It was left as it is; pass another path to start again."
    try:
        with safetensors.safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no checkpoint that can be read: {error}. {advice}") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} holds tensors, but is no checkpoint of training. {advice}")
    if about.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has version {about.get('version')}, and this library reads version {VERSION}. {advice}"
        )
    if about.get("sha256") != digest([tensors[name] for name in sorted(tensors)]):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum. {advice}")
    _compare(path, json.loads(about["settings"]), checkpoint.settings, advice)
    leaves, structure = jax.tree.flatten(like)
    found = [tensors.get(f"state/{i}") for i in range(len(leaves))]
    if any(a is None or a.shape != np.shape(_plain(b)) for a, b in zip(found, leaves, strict=True)):
        raise ValueError(f"{path} was written by another run: its optimiser keeps other things. {advice}")
    restored = [_restore(a, b) for a, b in zip(found, leaves, strict=True)]
    records = History(*(tensors[f"history/{f.name}"] for f in fields(History)))
    return jax.tree.unflatten(structure, restored), records


def _restore(array: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(like) else jnp.asarray(array, like.dtype)


def _compare(path: Path, stored: dict[str, Any], settings: dict[str, Any], advice: str) -> None:
    differ = [name for name in settings if stored.get(name) != settings[name]]
    if differ:
        what = "; ".join(f"{name} was {_short(stored.get(name))} and is {_short(settings[name])}" for name in differ)
        raise ValueError(f"{path} was written by another run: {what}. {advice}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:12] + "..."
