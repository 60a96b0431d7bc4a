"""Do draws follow the target's own score? A kernelised Stein discrepancy, with a p-value by the
wild bootstrap.

References: Liu, Lee and Jordan 2016, ICML (the discrepancy as a U-statistic); Chwialkowski,
Strathmann and Gretton 2016, ICML (the same, and the wild bootstrap for draws that depend on each
other); Gorham and Mackey 2017, ICML (the inverse multiquadric kernel); Leucht and Neumann 2013, J.
Multivariate Anal. 117 (the dependent wild bootstrap of such statistics).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy, first_tensor
from poe.algebra.maps import Preimage
from poe.spaces.transport import Unconstrained

MIN_DRAWS = 20  # that a test needs
BLOCKS = 40  # into which chains are cut, about; of more chains each is one


class SteinTest(NamedTuple):
    """The statistic, in units of (score x spread)², with mean 0 under the target; and its p-value,
    at least 1 / (1 + bootstrap).
    Both NaN where they have no meaning: fewer than 20 draws, draws that are all the same, energies
    or scores that are not finite; and a support with borders that no change of variables moves to
    infinity (an intersection, a union, a preimage): a density that ends where it is not 0 does not
    have the identity that the test rests on."""

    statistic: float
    pvalue: float


def stein_test(
    energy: Energy, x: Tensor, *, draws: int = 500, bootstrap: int = 1000, seed: int = 0
) -> SteinTest:
    # x: (n, *event) or (chain, draw, *event)
    """Whether x could be draws of the energy's density, judged by its score alone: log Z is not
    needed.

    With s = -∇E and the draws centred and scaled, coordinate by coordinate, to unit variance, the
    Stein kernel of k(x, y) = (c² + |x - y|²)^(-1/2) is, for r = x - y, q = c² + |r|² and d
    coordinates,

        h(x, y) = s(x)·s(y) q^(-1/2) + (s(x) - s(y))·r q^(-3/2) + d q^(-3/2) - 3 |r|² q^(-5/2),

    whose mean over y is 0 at every x when y has the target's law. c is a third of the median
    distance between draws: wider kernels see errors of the mean better, narrower ones errors of the
    scale. The statistic is the mean of h over pairs of draws. Its law under the target is that of
    the same mean with h(x, y) times ε(x) ε(y), random signs; the p-value is (1 + the number of sign
    vectors that reach the statistic) / (1 + bootstrap).

    Neighbouring draws of a chain depend on each other, and h of such a pair has a positive mean
    whatever the target. So chains are cut into blocks, about 40 in all; all draws of a block share
    one sign, and pairs in the same block or in blocks that touch are left out. The p-value then
    holds as long as a chain forgets within a block: lag-one correlations up to about 0.8 after
    thinning.

    On a constrained support draws and scores are those of `poe.spaces.transport.Unconstrained`.

    What it cannot see: the weights of modes that lie far apart, since the score does not know them,
    and modes that no draw reached.
    Its power falls with the number of coordinates: of sets of 500 normal draws that are a tenth too
    wide, a half, a third and a sixth are rejected at 5 % in 2, 10 and 30 coordinates; of those a
    fifth too wide, all, all and four in five. Errors along few directions of strongly correlated
    coordinates are seen late, since only the variances are scaled out. Draws that pass are locally
    right, no more.

    Arguments:
        x: draws; (n, *event) are taken to be independent, (chain, draw, *event) to depend within a
            chain.
        draws: at most so many are used: one score each, and draws² numbers. Chains are thinned
            evenly.
        bootstrap: sign vectors.
        seed: of the signs and the choice of draws.

    Raises:
        ValueError: the target is on a discrete space, or x has another shape.
        TypeError: the energy has no gradient.
    """
    if sets.is_discrete(energy.support):
        raise ValueError(
            f"{energy} is on a discrete space, where there is no score to test against"
        )
    generator = torch.Generator().manual_seed(seed)
    chains = _thinned(_chains(energy, x), draws, generator)
    if chains.shape[:2].numel() < MIN_DRAWS or isinstance(
        energy.support, sets.Intersection | sets.Union | Preimage
    ):
        return SteinTest(math.nan, math.nan)
    points, target = chains.flatten(0, 1).to(first_tensor(energy)), energy
    if not sets.is_real(energy.support):
        target = Unconstrained(energy)
        points = target.to_z(points)
    values, gradient = target.value_and_grad(points)
    h = stein_kernel(
        *(part.detach().cpu().double().reshape(len(points), -1) for part in (points, -gradient))
    )
    if not bool(values.isfinite().all() & h.isfinite().all()):
        return SteinTest(math.nan, math.nan)
    blocks, apart = _blocks(*chains.shape[:2])
    member = torch.nn.functional.one_hot(blocks).double()
    sums, pairs = member.mT @ torch.where(apart, h, 0) @ member, apart.sum()
    statistic = sums.sum() / pairs
    signs = 2.0 * torch.randint(2, (bootstrap, len(sums)), generator=generator) - 1
    null = ((signs.double() @ sums) * signs).sum(1) / pairs
    return SteinTest(statistic.item(), (1 + int((null >= statistic).sum())) / (1 + bootstrap))


def stein_kernel(x: Tensor, score: Tensor) -> Tensor:  # (n, d), (n, d) -> (n, n)
    """h of `stein_test` for all pairs. Not finite where the draws are all the same."""
    n, d = x.shape
    spread = torch.where(x.amax(0) > x.amin(0), x.std(0), 1)
    y, s = (x - x.mean(0)) / spread, score * spread
    yy, sy = y @ y.mT, s @ y.mT
    square = yy.diagonal().unsqueeze(1) + yy.diagonal() - 2 * yy
    c2 = square[torch.triu_indices(n, n, 1).unbind()].median() / 9
    inverse = 1 / (c2 + square)
    pull = sy.diagonal().unsqueeze(1) - sy - sy.mT + sy.diagonal()  # (s(x) - s(y))·(x - y)
    return inverse.sqrt() * (s @ s.mT + inverse * (pull + d - 3 * square * inverse))


def _chains(energy: Energy, x: Tensor) -> Tensor:
    """x as (chain, draw, *event); independent draws as chains of one."""
    axes = x.ndim - len(energy.event_shape)
    if axes not in (1, 2) or x.shape[axes:] != energy.event_shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it takes (n, *event) or (chain, draw, *event), event "
            f"{tuple(energy.event_shape)}"
        )
    return x.unsqueeze(1) if axes == 1 else x


def _thinned(chains: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """At most `draws` of all: evenly along each chain, of randomly chosen chains where there are
    more than that."""
    count, length = chains.shape[:2]
    if count > draws:
        chains = chains[torch.randperm(count, generator=generator)[:draws].to(chains.device)]
    keep = min(length, max(1, draws // max(count, 1)))
    kept = torch.linspace(0, max(length - 1, 0), keep).round().long()
    return chains[:, kept.to(chains.device)]


def _blocks(count: int, length: int) -> tuple[Tensor, Tensor]:  # -> (n), (n, n)
    """The block of each draw of `count` chains, about `BLOCKS` in all, and which pairs of draws lie
    in blocks that do not touch."""
    each = min(length, -(-BLOCKS // count))
    chain, draw = torch.arange(count).unsqueeze(1), torch.arange(length)
    blocks = (chain * each + draw * each // length).flatten()
    chain = blocks // each
    touching = (chain.unsqueeze(1) == chain) & ((blocks.unsqueeze(1) - blocks).abs() <= 1)
    return blocks, ~touching
