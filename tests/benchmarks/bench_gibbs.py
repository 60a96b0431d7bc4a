"""(e) What block Gibbs costs: a sweep of an RBM over its two matrix products and random numbers;
spins a second on a checkerboard.

One turn is `SWEEPS` sweeps by the kernel, the same number of bare products and uniforms, and
scikit-learn's own draws; for the checkerboard, sweeps by the kernel and by numpy.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from torch.nn.functional import linear

from experts.boltzmann import RBM, Ising
from poe.kernels.gibbs import Gibbs
from timing import in_turns, median_ratio, table

SWEEPS, CHAINS, VISIBLE, HIDDEN, SIDE, COUPLING = 10, 100, 784, 500, 1024, 0.44

generator = torch.Generator().manual_seed(0)
rbm = RBM(
    0.05 * torch.randn(VISIBLE, HIDDEN, generator=generator),
    torch.zeros(VISIBLE),
    torch.zeros(HIDDEN),
)
v = (torch.rand(CHAINS, VISIBLE, generator=generator) < 0.5).float()
h = (torch.rand(CHAINS, HIDDEN, generator=generator) < 0.5).float()
machine = BernoulliRBM(HIDDEN, random_state=0)
machine.components_ = rbm.weights.T.numpy().copy()
machine.intercept_visible_, machine.intercept_hidden_ = (
    rbm.visible_bias.numpy(),
    rbm.hidden_bias.numpy(),
)
machine.random_state_ = np.random.RandomState(0)


def bare() -> None:
    for _ in range(SWEEPS):
        torch.rand(CHAINS, VISIBLE + HIDDEN, generator=generator)
        linear(v, rbm.weights.T, rbm.hidden_bias)
        linear(h, rbm.weights, rbm.visible_bias)


def sklearn() -> None:
    x = v.numpy()
    for _ in range(SWEEPS):
        x = machine.gibbs(x)


def stepping(kernel: Gibbs, energy: RBM | Ising, x: torch.Tensor):
    state = kernel.init(energy, x)

    def run() -> None:
        nonlocal state
        state, _ = kernel.step(energy, state, kernel.noise(state, generator))

    return run


one = stepping(Gibbs(), rbm, v)
times = in_turns(
    [stepping(Gibbs(sweeps=SWEEPS), rbm, v), lambda: [one() for _ in range(SWEEPS)], bare, sklearn],
    turns=30,
)
rows = [
    (
        f"{SWEEPS} sweeps a step over the bare products",
        median_ratio(times, slice(0, 1), slice(2, 3)),
        "x",
        1.3,
    ),
    (
        "one sweep a step, its energy included",
        median_ratio(times, slice(1, 2), slice(2, 3)),
        "x",
        None,
    ),
    ("scikit-learn's gibbs over ours", median_ratio(times, slice(3, 4), slice(0, 1)), "x", None),
]
table(f"Gibbs, RBM {VISIBLE} x {HIDDEN}, {CHAINS} chains", rows)

ising = Ising((SIDE, SIDE), COUPLING)
spins = 2.0 * (torch.rand(1, SIDE, SIDE, generator=generator) < 0.5).float() - 1
grid, random = spins[0].numpy().copy(), np.random.default_rng(0)
board = np.indices((SIDE, SIDE)).sum(0) % 2


def rolled() -> None:
    for colour in (0, 1):
        local = (
            np.roll(grid, 1, 0) + np.roll(grid, -1, 0) + np.roll(grid, 1, 1) + np.roll(grid, -1, 1)
        )
        up = random.random((SIDE, SIDE), dtype=np.float32) < 1 / (1 + np.exp(-2 * COUPLING * local))
        np.copyto(grid, np.where(up, np.float32(1), np.float32(-1)), where=board == colour)


times = in_turns(
    [stepping(Gibbs(sweeps=5), ising, spins), lambda: [rolled() for _ in range(5)]], turns=8
)
speed = [5e-6 * SIDE**2 / statistics.median(turn[k] for turn in times) for k in (0, 1)]
table(
    f"Checkerboard, {SIDE} x {SIDE}",
    [
        ("million spins a second, the kernel", speed[0], "", None),
        ("million spins a second, numpy", speed[1], "", None),
        ("the kernel over numpy", speed[0] / speed[1], "x", None),
    ],
)
