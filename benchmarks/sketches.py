"""Sketches of 4,096 dimensions estimate tangent kernels within the stated error, for a small part of dense ones' cost.

python benchmarks/sketches.py [--traker PYTHON] [--torch PYTHON --images FILE [--rows 200]]

1. Speed: 16 gradients of 2^17 parameters in float32 to 4,096 dimensions, by this library and by traker's projector for
   processors (BasicProjector, random signs; --traker: the Python of an environment with traker 0.3.2), in turns.
2. Values: a tanh network (64, 128, 128, 10; 26,122 parameters, float64) on 200 of scikit-learn digits and 200 test
   rows, at its start and trained: the kernel (mean over outputs) by sketch beside the exact one; the accuracy of the
   linearized model trained to the end (noise of a thousandth of the mean of the diagonal).
3. --images: a ResNet-18 for 32 x 32 images (11.2 million parameters, of PyTorch, random weights, evaluation mode) on a
   file .npz of images (X_train, y_train, X_test, y_test): the sum of the outputs; sketches of all rows, and beside the
   exact kernel of at most 300; the accuracy of the linearized model on 200 others, one output a class.

Writes results/sketches.json.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time

import numpy as np

SMALL = False
SIZE, PARAMETERS, ROWS = 4096, 2**17, 16
N, M, WIDTH, STEPS, RATE = 200, 200, 128, 600, 0.2
SUBSET, TEST = 300, 200


def ours(gradients):
    """Project by this library."""
    from widelimit.tangents.projection import Projection

    out = np.zeros((len(gradients), SIZE), np.float32)
    Projection(SIZE, 0).add(out, gradients, 0)
    return out


def traker():
    """Serve in an environment with traker: seconds and the largest error of a line of the Gram matrix, at each line."""
    import torch
    from trak.projectors import BasicProjector, ProjectionType

    gradients = torch.tensor(drawn())
    projector = BasicProjector(PARAMETERS, SIZE, 0, ProjectionType.rademacher, torch.device("cpu"), block_size=100)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = projector.project(gradients, model_id=0).numpy() / SIZE**0.5
        print(json.dumps([time.perf_counter() - start, error(found)]), flush=True)


def drawn():
    """Draw gradients that share a part, as those of one network do."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((ROWS, PARAMETERS)) + rng.standard_normal(PARAMETERS)).astype(np.float32)


def error(features):
    """Return the root mean square error of inner products, in units of the mean squared norm."""
    gradients = drawn().astype(np.float64)
    exact = gradients @ gradients.T
    return float(np.sqrt(np.mean((features @ features.T - exact) ** 2)) / np.diagonal(exact).mean())


def speed(python):
    """Return the rows of part 1."""
    gradients, found = drawn(), {"widelimit": [], "traker": []}
    server = None
    if python:
        server = subprocess.Popen(
            [python, __file__, "traker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ours(gradients)
    for _ in range(3):
        start = time.perf_counter()
        features = ours(gradients)
        found["widelimit"].append([time.perf_counter() - start, error(features)])
        if server:
            server.stdin.write("\n")
            server.stdin.flush()
            found["traker"].append(json.loads(server.stdout.readline()))
    if server:
        server.stdin.close()
        server.wait()
    return [
        {"part": "projection", "way": way, "seconds": min(t for t, _ in runs), "error": runs[0][1]}
        for way, runs in found.items()
        if runs
    ]


def network():
    """Return apply, start and trained parameters, and the digits."""
    import jax
    import jax.numpy as jnp
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order] / 16 - 0.3, y[order]
    sizes, rng = [64, WIDTH, WIDTH, 10], np.random.default_rng(1)
    start = [(rng.standard_normal((a, b)) / a**0.5, np.zeros(b)) for a, b in itertools.pairwise(sizes)]

    def apply(params, X):
        for weight, bias in params[:-1]:
            X = jnp.tanh(X @ weight + bias)
        return X @ params[-1][0] + params[-1][1]

    with jax.enable_x64(True):
        targets = jnp.eye(10)[y[:N]]

        @jax.jit
        def train(params):
            slope = jax.grad(lambda p: jnp.mean(jnp.sum((apply(p, jnp.asarray(X[:N])) - targets) ** 2, axis=1)))
            return jax.lax.fori_loop(
                0, STEPS, lambda _, p: jax.tree.map(lambda a, g: a - RATE / 4 * g, p, slope(p)), params
            )

        trained = jax.tree.map(np.asarray, train(jax.tree.map(jnp.asarray, start)))
    return apply, {"start": start, "trained": trained}, X, y


def values():
    """Return the rows of part 2."""
    import widelimit as wl

    apply, states, X, y = network()
    targets, rows = np.eye(10)[y[:N]], []
    for state, params in states.items():
        model, kernels = wl.tangents(apply, params), {}
        for way in ("exact", f"sketch of {SIZE}"):
            begin = time.perf_counter()
            pair = [
                model.at(part, output="trace") if way == "exact" else model.sketch(part, size=SIZE, output="trace")
                for part in (X[:N], X[N : N + M])
            ]
            kernels[way] = pair[0].matrix()
            took = time.perf_counter() - begin
            noise = 1e-3 * float(np.diagonal(kernels[way]).mean())
            mean = wl.linearized_posterior(pair[0], targets, noise=noise).predict(pair[1]).mean
            row = {"part": f"digits, {state}", "way": way, "seconds": took}
            row |= {"accuracy": float((mean.argmax(axis=1) == y[N : N + M]).mean())}
            row |= {"of the network": float((pair[1].values.argmax(axis=1) == y[N : N + M]).mean())}
            rows.append(row | (compared(pair[0], kernels["exact"]) if way != "exact" else {}))
    return rows


def compared(sketch, exact):
    """Return errors of a sketch's kernel beside what it states."""
    off = np.abs(sketch.matrix() - exact)
    size = np.linalg.norm(exact)
    return {
        "error": float(np.linalg.norm(off) / size),
        "stated": float(np.linalg.norm(sketch.error()) / size),
        "inside .99": float((off <= sketch.error(confidence=0.99)).mean()),
    }


def images(file, count, tests):
    """Print the rows of part 3, in an environment with PyTorch."""
    import torch
    from torch import nn

    import widelimit as wl
    from widelimit.torch import tangents

    class Block(nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.one, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
            self.two, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            same = stride == 1 and before == after
            self.skip = (
                nn.Identity()
                if same
                else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            )

        def forward(self, x):
            return torch.relu(self.norm2(self.two(torch.relu(self.norm1(self.one(x))))) + self.skip(x))

    torch.manual_seed(0)
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *(Block(*w) for w in widths), *head
    )
    net.train()
    stored = np.load(file)
    parts = [stored[name] for name in ("X_train", "X_test")]
    X, Z = (
        (np.moveaxis(p[:n], -1, 1) / 255 - 0.5).astype(np.float32) * 4
        for p, n in zip(parts, (count, tests), strict=True)
    )
    y, z = stored["y_train"][:count], stored["y_test"][:tests]
    with torch.no_grad():
        net(torch.tensor(X[:500]))  # running statistics
    model, rows = tangents(net.eval(), of=lambda outputs, _: outputs.sum(1) / 10**0.5), []
    exact = None
    cases = [("exact", min(count, SUBSET)), ("sketch", min(count, SUBSET))] + [("sketch", count)] * (count > SUBSET)
    for way, n in cases:
        begin = time.process_time()
        pair = [
            model.at(part, output="trace") if way == "exact" else model.sketch(part, size=SIZE, output="trace")
            for part in (X[:n], Z)
        ]
        matrix = pair[0].matrix() if exact is None or len(exact) == n else None
        noise = 1e-3 * float(pair[0].diag().mean())
        mean = wl.linearized_posterior(pair[0], np.eye(10)[y[:n]] - 0.1, noise=noise).predict(pair[1]).mean
        rows.append({"part": f"ResNet-18, {n} images", "way": way, "seconds": time.process_time() - begin})
        rows[-1] |= {"accuracy": float(((mean - pair[1].values).argmax(axis=1) == z).mean())}
        exact = matrix if way == "exact" else exact
        rows[-1] |= compared(pair[0], exact) if way == "sketch" and matrix is not None else {}
        print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows))


def main():
    """Measure the parts."""
    from common import report

    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--traker", "--torch", "--images"):
        parser.add_argument(name, default="")
    parser.add_argument("--rows", type=int, default=200, help="training images of part 3")
    parser.add_argument("--tests", type=int, default=TEST, help="test images of part 3")
    given = parser.parse_args()
    rows = speed(given.traker) + values()
    if given.images:
        command = [given.torch, __file__, "images", given.images, str(given.rows), str(given.tests)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows += json.loads(run.stdout.strip().split("\n")[-1])
    report("sketches", rows, size=SIZE, parameters=PARAMETERS, gradients=ROWS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["traker"]:
        traker()
    elif sys.argv[1:2] == ["images"]:
        images(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
