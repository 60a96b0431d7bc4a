"""(h) ESS a gradient and a second beside other libraries: 64 chains on a Gaussian, a banana and a
composed mixture.

    bench_peers.py                                      ours alone
    bench_peers.py blackjax=PYTHON numpyro=PYTHON ...   and those that these interpreters have
    (`peers.py` says which)

The Gaussian has 100 dimensions and condition number 1000, turned at random; the mixture has four
modes that chains do not move between. Warm-up and compilation are left out, but for `poe.sample`,
where everything counts. ESS is the smallest bulk ESS over the coordinates (arviz-stats), of all
chains together: where they do not agree, R-hat is large and ESS is small.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import poe
import targets as known
import timing  # noqa: F401
from peers import CHAINS, DIMENSIONS, DRAWS, energy, start
from poe.diagnostics.convergence import ess, rhat
from poe.kernels.defaults import default_kernel
from poe.mcmc.run import run, streams
from poe.sampling.methods.runs import WARMUP


def chains(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The usual kernel after the usual warm-up."""
    target = opaque(name)
    generators = streams(seed, 1, target.device)
    warm = run(
        default_kernel(target),
        target,
        torch.from_numpy(start(name, seed)),
        draws=1,
        warmup=WARMUP,
        generators=generators,
    )
    before, began = target.tally.gradients, time.process_time()
    trace = run(warm.kernel, target, warm.states, draws=DRAWS, generators=generators)
    return counted(trace.x, target.tally.gradients - before, time.process_time() - began, before)


def sample(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """What `poe.sample` does without options."""
    target, began = opaque(name), time.process_time()
    draws = poe.sample(target, CHAINS * DRAWS, chains=CHAINS, seed=seed)
    return counted(draws.chains, target.tally.gradients, time.process_time() - began, 0)


def opaque(name: str) -> known.Opaque:
    return known.Opaque(lambda x: energy(name, x, torch), DIMENSIONS[name], name=name)


def counted(x: torch.Tensor, gradients: int, seconds: float, warm: int) -> dict[str, np.ndarray]:
    return {"x": x.numpy()} | {
        k: np.asarray(v)
        for k, v in (("gradients", gradients), ("seconds", seconds), ("warm", warm))
    }


def theirs(library: str, python: str, name: str) -> dict[str, np.ndarray] | None:
    """None where it does not run; the end of its output is printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.npz"
        command = [python, str(Path(__file__).with_name("peers.py")), library, name, str(path)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            print(f"  {library:<10} does not run: {result.stderr.strip().splitlines()[-1]}")
            return None
        return dict(np.load(path))


def line(name: str, found: dict[str, np.ndarray]) -> None:
    size, worst = float(ess(found["x"], "bulk").min()), float(rhat(found["x"]).max())
    gradients, seconds, warm = (float(found[key]) for key in ("gradients", "seconds", "warm"))
    print(
        f"  {name:<10} {1e3 * size / gradients:9.3f} a thousand gradients {size / seconds:10.1f} a "
        f"second; ESS {size:,.0f}, R-hat "
        f"{worst:.3f}, {gradients / CHAINS:,.0f} gradients a chain after {warm / CHAINS:,.0f}",
        flush=True,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    others = [word.split("=", 1) for word in sys.argv[1:]]
    for name in DIMENSIONS:
        print(f"\nESS on the {name}, {CHAINS} chains")
        line("poe chains", chains(name))
        line("poe.sample", sample(name))
        for library, python in others:
            found = theirs(library, python, name)
            if found is not None:
                line(library, found)
