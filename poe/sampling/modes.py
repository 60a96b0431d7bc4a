"""The most likely x."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy, first_tensor
from poe.algebra.frozen import frozen
from poe.kernels import Gibbs
from poe.kernels.defaults import default_discrete_kernel
from poe.mcmc.run import streams
from poe.sampling.job import Space
from poe.sampling.sampler import sample
from poe.smc.discrete_search import search
from poe.smc.mode_search import Found
from poe.spaces import reals
from poe.spaces.points import energies, enumerable, points, uniform_points
from poe.spaces.sites import box_of
from poe.spaces.structure import Structure
from poe.spaces.transport import reals_of

DRAWS = 400  # among which the points are chosen from which the search starts
STARTS = 12  # half of them the likeliest draws, half evenly spaced in energy
FAILED_ENERGY = 1e12  # nats, for the search, where the energy fails
BORDER_SLOPE = 1e-12  # of x by z, below which x is at an end of a box
MIN_SLOPE = 1e-2  # of the energy, above which the search ended before a minimum
MAX_BETA = 20.0  # of chains that are cooled, reached in so many sweeps
SWEEPS = 200
FINAL_BETA, FINAL_SWEEPS = 1e4, 10


def mode(energy: Energy, *, init: Tensor | None = None, seed: int | None = None) -> Tensor:
    # -> (*event)
    """The x of lowest energy that was found: of a small discrete space exactly; of a large one by
    chains that are cooled; else by L-BFGS from several points.

    L-BFGS starts from `init` (n, *event), or from the minima that a search for modes finds
    (`poe.smc.mode_search`), else from draws of the density. On a constrained support it runs in
    unconstrained variables, without their Jacobian: the mode of the density over x. A mode on the
    border is approached as closely as the precision allows.

    Raises ValueError where the energy falls without bound, an expert is NaN, or `init` has no point
    of finite energy.
    References: Byrd, Lu, Nocedal and Zhu 1995, SIAM J. Sci. Comput. 16(5) (L-BFGS-B, as in SciPy);
    Geman and Geman 1984, IEEE PAMI 6(6) (cooling).
    """
    (energy,) = energies_of([energy], "mode")
    if init is not None:
        init = _checked(energy, init)
    if sets.is_discrete(energy.support):
        if enumerable(energy):
            return points(energy, energies(energy).argmin().reshape(1))[0]
        if box_of(energy) is None:
            raise ValueError(
                f"{energy} takes infinitely many values a coordinate: the search for the "
                "likeliest of them needs finitely many"
            )
        return _cooled(energy, init, seed)
    begin = _begin(energy, seed) if init is None else init
    transform: Any = None if sets.is_real(energy.support) else reals_of(energy)
    z = begin if transform is None else transform.inv(begin)
    found = [_descend(energy, point, transform) for point in z]
    x, value, lost = found[int(torch.tensor([value for _, value, _ in found]).argmin())]
    if value == -math.inf:
        raise ValueError(f"{energy} has no most likely x: its energy falls without bound")
    if lost:
        raise ValueError(
            f"{energy} is NaN where the search finds its lowest energies: an expert fails there"
        )
    return x


def _checked(energy: Energy, init: Tensor) -> Tensor:
    """The points (n, *event) of finite energy among those where the search is to start."""
    shape, is_tensor = energy.event_shape, isinstance(init, Tensor)
    if not (is_tensor and init.numel() and init.shape[max(0, init.ndim - len(shape)) :] == shape):
        got = f"shape {tuple(init.shape)}" if is_tensor else f"a {type(init).__name__}"
        raise ValueError(
            f"init is a tensor (n, *event) with event shape {tuple(shape)} of {energy}, got {got}"
        )
    x = init.reshape(-1, *shape)
    x = x if sets.is_discrete(energy.support) else x.to(first_tensor(energy))
    with torch.no_grad():
        values = energy(x)
    if bool(values.isnan().any()):
        raise ValueError(
            f"{energy} is NaN at {int(values.isnan().sum())} of {len(x)} points of init: an expert "
            "fails there"
        )
    if not bool(values.isfinite().any()):
        raise ValueError(
            f"no point of init has finite energy under {energy}, whose support is "
            f"{energy.support!r}"
        )
    return x[values.isfinite()]


def _cooled(energy: Energy, init: Tensor | None, seed: int | None) -> Tensor:
    """The best point of chains on E/T, T falling from 1 to 1/`MAX_BETA`, and then near 0, and of
    their starts: `init`, or the minima that a search finds beside uniform points."""
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    (generator,) = streams(seed, 1, energy.device)
    structure = Structure.of(energy)
    if init is not None:
        x = known = init
    elif structure.searchable:  # the lowest ends of descents, which are cooled beside others
        known = search(energy, structure.starts, generator).minima[:STARTS]
        x = torch.cat([known, uniform_points(energy, STARTS, generator)])
    else:
        x = uniform_points(energy, 2 * STARTS, generator)
        known = x[:0]
    kernel = default_discrete_kernel(energy)
    kernel = kernel if kernel.ready else Gibbs()
    rising = torch.logspace(0, math.log10(MAX_BETA), SWEEPS).tolist()
    for beta in [*rising, *[FINAL_BETA] * FINAL_SWEEPS]:
        cold = energy**beta
        state = kernel.init(cold, x)
        x = kernel.step(cold, state, kernel.noise(state, generator))[0].x
    x = torch.cat([known, x])
    with torch.no_grad():
        values = energy(x)
    if bool(values.isnan().any()):
        raise ValueError(f"{energy} is NaN where the search ended: an expert fails there")
    return x[values.argmin()]


def _begin(energy: Energy, seed: int | None) -> Tensor:  # -> (n, *event)
    """The lowest minima that a search for modes finds; where it finds none, draws of the density,
    half of them the likeliest, half evenly spaced in energy."""
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    space = Space(Structure.of(energy), seed, searches=True)
    with warnings.catch_warnings(), frozen(energy):
        warnings.simplefilter("ignore")  # a search only says where to look
        found = space.found
        if isinstance(found, Found) and len(found.lowest):
            z = found.lowest[:STARTS].to(first_tensor(energy))
            return space.x(z.reshape(-1, *space.target.event_shape))
        draws = sample(energy, DRAWS, seed=seed).x
    with torch.no_grad():
        order = energy(draws).argsort()
    half = STARTS // 2
    spaced = order[:: max(1, len(order) // half)][:half]
    return draws[torch.cat([order[:half], spaced])]


def _descend(energy: Energy, z: Tensor, transform: Any) -> tuple[Tensor, float, bool]:
    """(x, energy, lost) where L-BFGS ends: energy -inf where it falls without bound; lost where NaN
    stopped it on its way down."""
    from scipy.optimize import minimize  # arviz-stats brings scipy; half a second

    failed = False

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.as_tensor(flat, dtype=z.dtype, device=z.device).reshape(z.shape)
        if transform is None:
            level, slope = energy.value_and_grad(at)
        else:
            with torch.enable_grad():
                at = at.requires_grad_()
                x = transform(at)
            level, pull = energy.value_and_grad(x.detach())
            (slope,) = torch.autograd.grad(x, at, pull)
        if not (bool(level < math.inf) and bool(slope.isfinite().all())):  # the search turns back
            nonlocal failed
            failed |= bool(level.isnan()) or bool(level.isfinite())
            return FAILED_ENERGY, np.zeros(z.numel())
        return float(level), slope.flatten().double().cpu().numpy()

    tiny = float(torch.finfo(z.dtype).eps)
    result = minimize(
        objective,
        z.flatten().double().cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": tiny, "gtol": 1e-6},
    )
    x = torch.as_tensor(result.x, dtype=z.dtype, device=z.device).reshape(z.shape)
    falling = np.abs(result.jac) > MIN_SLOPE
    unbounded = (result.fun < -1e6 and not np.abs(result.x).max() < 1e6) or bool(
        (falling & _at_border(energy, x, transform)).any()
    )
    at = x if transform is None else transform(x)
    return at, -math.inf if unbounded else float(result.fun), failed and bool(falling.any())


def _at_border(energy: Energy, z: Tensor, transform: Any) -> np.ndarray:  # (*reals) -> (numbers)
    """Where a number of x in a box has come so near to an end that steps of z no longer move it."""
    if transform is None or not isinstance(reals.image(energy.support), sets.Box):
        return np.zeros(z.numel(), dtype=bool)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(transform(z).sum(), z)
    return slope.flatten().cpu().numpy() < BORDER_SLOPE
