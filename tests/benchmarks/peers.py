"""Other libraries on the targets of `bench_peers.py`, each in the interpreter that has it: `python
peers.py NAME TARGET FILE.npz`.

Writes the draws (chain, draw, d), gradients and seconds of sampling, and gradients of warm-up.
BlackJAX and NumPyro: NUTS with window adaptation of a diagonal mass matrix, their default (in 100
dimensions a dense one takes 350,000 gradients a chain of warm-up), 64 chains as one batch,
compilation left out. torchebm: its HMC, which adapts nothing; the best of a grid of step sizes and
lengths, found beforehand and not counted.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

CHAINS, WARM, DRAWS = 64, 500, 500


def rotated(d: int = 100, condition: float = 1000.0) -> tuple[np.ndarray, np.ndarray]:
    """Precision and covariance of a normal whose variances are spread over `condition`, evenly in
    the logarithm, turned at random."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    variances = condition ** np.linspace(0, 1, d)
    return (turn / variances) @ turn.T, (turn * variances) @ turn.T


MODES = np.array([[3.0, 0.0], [-3.0, 0.5], [0.0, 3.0], [0.5, -3.0]])
DIMENSIONS = {"gaussian": 100, "banana": 2, "mixture": 2}


def energy(name: str, x: Any, math: Any) -> Any:
    # (*batch, d) -> (*batch); math is torch or jax.numpy
    """The Gaussian; x ~ N(1, 1), y ~ N(x², .1); a mixture of four normals of sd .5 & a wide banana
    that favours some of them."""
    if name == "gaussian":
        precision = math.asarray(rotated()[0].astype(np.float32))
        return ((x @ precision) * x).sum(-1) / 2
    a, b = x[..., 0], x[..., 1]
    if name == "banana":
        return (a - 1) ** 2 / 2 + (a**2 - b) ** 2 / 0.2
    squares = [((a - m) ** 2 + (b - n) ** 2) / 0.5 for m, n in MODES.tolist()]
    nearest = math.stack(squares, -1)
    return -math.log(math.exp(-nearest).sum(-1) + 1e-35) + a**2 / 18 + (b - a**2 / 4) ** 2 / 18


def start(name: str, seed: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((CHAINS, DIMENSIONS[name])).astype(
        np.float32
    )


def blackjax_nuts(name: str, seed: int) -> dict[str, Any]:
    import blackjax
    import jax
    import jax.numpy as jnp

    density = lambda x: -energy(name, x, jnp)  # noqa: E731

    def warm(key, x):
        (state, parameters), info = blackjax.window_adaptation(blackjax.nuts, density).run(
            key, x, WARM
        )
        return state, parameters, info.info.num_integration_steps.sum()

    def draw(key, state, parameters):
        step = blackjax.nuts(density, **parameters).step

        def once(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (x, steps) = jax.lax.scan(once, state, jax.random.split(key, DRAWS))
        return x, steps.sum()

    keys = jax.random.split(jax.random.key(seed), 2 * CHAINS)
    warm, draw = jax.jit(jax.vmap(warm)), jax.jit(jax.vmap(draw))
    state, parameters, before = warm(keys[:CHAINS], start(name, seed))
    jax.block_until_ready(draw(keys[CHAINS:], state, parameters))
    began = time.process_time()
    x, steps = jax.block_until_ready(draw(keys[CHAINS:], state, parameters))
    return {
        "x": x,
        "gradients": steps.sum(),
        "seconds": time.process_time() - began,
        "warm": before.sum(),
    }


def numpyro_nuts(name: str, seed: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    kernel = NUTS(potential_fn=lambda x: energy(name, x, jnp))
    options = {"num_chains": CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=WARM, num_samples=DRAWS, **options)
    key = jax.random.key(seed)
    mcmc.warmup(
        key, init_params=start(name, seed), extra_fields=("num_steps",), collect_warmup=True
    )
    before = mcmc.get_extra_fields()["num_steps"].sum()
    seconds = []
    for draws in (1, 1, DRAWS):  # it compiles for each run: what one draw takes is left out
        mcmc.num_samples = draws
        began = time.process_time()
        mcmc.run(key, extra_fields=("num_steps",))
        x = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        seconds.append(time.process_time() - began)
    gradients = mcmc.get_extra_fields()["num_steps"].sum()
    return {"x": x, "gradients": gradients, "seconds": seconds[2] - seconds[1], "warm": before}


def torchebm_hmc(name: str, seed: int) -> dict[str, Any]:
    import torch
    from arviz_stats.base import array_stats
    from torchebm.core import BaseModel
    from torchebm.samplers import HamiltonianMonteCarlo

    torch.set_num_threads(1)

    class Model(BaseModel):
        def forward(self, x):
            return energy(name, x, torch)

    def draw(step: float, length: int, draws: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        sampler = HamiltonianMonteCarlo(Model(), step_size=step, n_leapfrog_steps=length)
        began = time.process_time()
        x = sampler.sample(
            torch.from_numpy(start(name, seed)),
            n_steps=2 * draws,
            return_trajectory=True,
            generator=generator,
        )
        seconds = (time.process_time() - began) / 2  # half is warm-up
        gradients = (
            CHAINS * draws * (length + 1)
        )  # its leapfrog starts each trajectory with a new gradient
        return {"x": x[:, draws:], "gradients": gradients, "seconds": seconds, "warm": gradients}

    def worth(step: float, length: int) -> float:
        x = draw(step, length, 50)["x"].numpy()
        if not np.isfinite(x).all():
            return 0.0
        return (
            float(np.nanmin(array_stats.ess(x, chain_axis=0, draw_axis=1, method="bulk"))) / length
        )

    grid = [(step, length) for step in (0.05, 0.1, 0.2, 0.4, 0.8, 1.5) for length in (5, 20)]
    return draw(*max(grid, key=lambda pair: worth(*pair)), DRAWS)


if __name__ == "__main__":
    library, target, path = sys.argv[1:]
    found = {"blackjax": blackjax_nuts, "numpyro": numpyro_nuts, "torchebm": torchebm_hmc}[library](
        target, 0
    )
    np.savez(path, **{key: np.asarray(value) for key, value in found.items()})
