"""The script migration_values.py asks neural-tangents here: expressions of docs/migration.md, after their setup."""

import json
import sys

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from neural_tangents import predict, stax

jax.config.update("jax_enable_x64", True)
NAMES = {name: value for name, value in vars(stax).items() if name[0] != "_"} | {
    "nt": nt, "stax": stax, "predict": predict, "jax": jax, "jnp": jnp, "np": np,
}  # fmt: skip


def answer(*, setup: str, code: str) -> list:
    """Return the arrays of an expression, (arrays, ..)."""
    names = dict(NAMES)
    exec(setup, names)
    return [np.asarray(value).tolist() for value in jax.tree.leaves(eval(code, names))]


for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
