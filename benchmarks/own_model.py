"""Tangent kernels of a ResNet-18, a transformer encoder and an MLP in PyTorch, beside recipes from torch.func.

    python benchmarks/own_model.py                      # every network and way, each in a process of its own, in turns
    python benchmarks/own_model.py --networks resnet --rows 256 --ways widelimit
    python benchmarks/own_model.py --networks resnet --rows 2000 --ways widelimit --outputs trace --images FILE
    python benchmarks/own_model.py --seconds cpu        # on a machine that does other things

Needs PyTorch (make test-torch builds .venv-torch). Peak memory is VmHWM of the process, beside that before the kernel.
The ways of torch.func: `recipe`, gradients of one output at a time by vmap, summed layer by layer; `contraction` and
`products`, the two of PyTorch's tutorial on empirical NTKs (Jacobian contraction, NTK-vector products).
"""

import argparse
import json
import subprocess
import sys
import time

import common
import numpy as np

WAYS = ("widelimit", "recipe", "contraction", "products")
NETWORKS = {"resnet": 16, "encoder": 16, "mlp": 256}
"""Networks, with the number of rows."""


def resnet(nn):
    """ResNet-18 for 32 x 32 images: stem 3 x 3, widths 64 to 512, 11.2 million parameters."""

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.short = nn.Identity()
            if stride > 1 or inputs != outputs:
                self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.relu = nn.ReLU()

        def forward(self, x):
            h = self.relu(self.norm1(self.conv1(x)))
            return self.relu(self.norm2(self.conv2(h)) + self.short(x))

    layers, inputs = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)), (3, 32, 32)


def encoder(nn):
    """Four transformer layers of width 256 over 64 tokens, 10 outputs from their mean."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    stack = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return nn.Sequential(stack, Mean(), nn.Linear(256, 10)), (64, 256)


def mlp(nn):
    """Three hidden layers of 512, 10 outputs."""
    return nn.Sequential(
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    ), (64,)


def recipe(torch, module, X, output):
    """Gradients of one output at a time, by vmap; inner products layer by layer."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def one(params, x, a):
        return torch.func.functional_call(module, (params, buffers), (x[None],))[0, a]

    gradient = torch.func.vmap(torch.func.grad(one), (None, 0, None))
    c = 10
    if output == "trace":
        total = 0
        for a in range(c):
            for g in gradient(params, X, a).values():
                total = total + g.flatten(1) @ g.flatten(1).T
        return (total / c).numpy()
    found = [[g.flatten(1) for g in gradient(params, X, a).values()] for a in range(c)]
    return sum(torch.einsum("anp,bmp->nmab", *2 * [torch.stack(leaf)]) for leaf in zip(*found, strict=True)).numpy()


def contraction(torch, module, X, output):
    """Jacobians of all rows, contracted: the tutorial's first way."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def row(params, x):
        return torch.func.functional_call(module, (params, buffers), (x[None],))[0]

    found = torch.func.vmap(torch.func.jacrev(row), (None, 0))(params, X)
    rule = {"full": "nap,mbp->nmab", "trace": "nap,map->nm"}[output]
    total = sum(torch.einsum(rule, leaf.flatten(2), leaf.flatten(2)) for leaf in found.values())
    return (total / (10 if output == "trace" else 1)).numpy()


def products(torch, module, X, output):
    """A product with the kernel for every pair of rows and every output: the tutorial's second way."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def pair(x, y):
        def at(z):
            return lambda params: torch.func.functional_call(module, (params, buffers), (z[None],))[0]

        _, pull = torch.func.vjp(at(y), params)

        def column(v):
            return torch.func.jvp(at(x), (params,), pull(v))[1]

        return torch.func.vmap(column)(torch.eye(10)).T

    full = torch.stack([torch.func.vmap(pair, (None, 0))(x, X) for x in X])
    return (torch.einsum("nmaa->nm", full) / 10 if output == "trace" else full).numpy()


def peak():
    """Read the peak resident memory in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def measure(network, way, output, rows, repeats, threads, seconds, memory, images):
    """Print one line of JSON: seconds of each call, the peak, and some values."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, shape = globals()[network](torch.nn)
    module = module.eval()
    X = torch.randn(rows, *shape)
    if images:
        stored = np.load(images)
        X = stored[next(name for name in stored.files if stored[name].ndim == 4)][:rows]
        X = torch.tensor((np.moveaxis(X, -1, 1) / 255 - 0.5).astype(np.float32))
    clock = time.process_time if seconds == "cpu" else time.perf_counter
    import widelimit.torch

    def call():
        if way == "widelimit":
            return widelimit.torch.empirical_ntk(module, output=output, memory=memory).gram(X.numpy())
        return globals()[way](torch, module, X, output)

    before, times, predicted = peak(), [], None
    if way == "widelimit":
        predicted = widelimit.torch.empirical_ntk(module, output=output, memory=memory).explain(X.numpy()).seconds
    for _ in range(repeats):
        start = clock()
        values = call()
        times.append(clock() - start)
    some = np.asarray(values).reshape(-1)[:: max(1, values.size // 64)]
    print(json.dumps({"times": times, "before": before, "peak": peak(), "some": some.tolist(), "predicted": predicted}))


def run(options):
    """Measure every way in a process of its own, in turns, and report."""
    found = {}
    cases = [(n, output) for n in options.networks for output in options.outputs]
    for network, output in cases:
        rows = options.rows or NETWORKS[network]
        for turn in range(options.turns):
            for way in options.ways:
                given = [network, way, output, rows, options.repeats, options.threads, options.seconds, options.memory]
                given.append(options.images)
                line = [sys.executable, __file__, "--one", json.dumps(given)]
                try:
                    made = subprocess.run(line, capture_output=True, text=True, timeout=options.limit)
                except subprocess.TimeoutExpired:
                    print(f"{network} {output} {way}: over {options.limit} s", file=sys.stderr)
                    continue
                if made.returncode:
                    print(f"{network} {output} {way}: {made.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                    continue
                one = json.loads(made.stdout.splitlines()[-1])
                print(network, output, way, turn, one["times"], round(one["peak"]), file=sys.stderr, flush=True)
                old = found.setdefault((network, output, way, rows), one)
                old["times"] += one["times"] if old is not one else []
    table = []
    for (network, output, way, rows), one in found.items():
        exact = found.get((network, output, "widelimit", rows), one)["some"]
        error = np.abs(np.subtract(exact, one["some"])).max() / np.abs(exact).max()
        table.append(
            {
                "network": network, "rows": rows, "output": output, "way": way,
                "seconds": float(f"{min(one['times']):.3g}"), "peak MiB": round(one["peak"]),
                "before MiB": round(one["before"]), "difference": float(f"{error:.1e}"), "predicted": one["predicted"],
            }
        )  # fmt: skip
    common.report("own_model", table, threads=options.threads, seconds=options.seconds, memory=options.memory)


def main():
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--outputs", nargs="+", default=["trace", "full"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--memory", type=float, default=None)
    parser.add_argument("--images", help="a file .npz with images (n, 32, 32, 3) for the resnet; else random numbers")
    parser.add_argument("--limit", type=float, default=1000)
    parser.add_argument("--one")
    options = parser.parse_args()
    if options.one:
        measure(*json.loads(options.one))
    else:
        run(options)


if __name__ == "__main__":
    main()
