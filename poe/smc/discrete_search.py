"""A search for the phases of a discrete target: greedy descents and short chains from many starts,
and a mixture of products of independent sites that is fitted to where they end.

A minimum of the energy says little on a discrete space: a phase may have its mass in its entropy
(the disordered phase of a Potts model), or hide in a point that no descent from elsewhere reaches
(a unit of a Boltzmann machine that needs all its inputs). So

1. starts are drawn: uniform points, points with one value at all sites, draws of factors that
   sample, states in which one hidden unit is set, and ends of chains that were annealed from high
   temperatures;
2. single-site descents go from all of them, each site in turn to its most likely value, until no
   change of one site lowers the energy: their ends are the minima;
3. chains at temperature 1 go from starts, minima and annealed points alike;
4. a mixture q = Σ_k w_k Π_i q_ki(x_i) is fitted to the states of these chains, with as many
   components as held-out chains call for;
5. importance sampling from q, with wide components beside it, weighs the phases, and q is fitted
   again to what the weights say, a few rounds (Cappé, Douc, Guillin, Marin and Robert 2008,
   Statistics and Computing 18(4)).

q is normalised and draws: a start of importance resampling, or of annealing on a geometric path,
which keeps the weights of its phases. Components that overlap are one basin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poe.algebra.capabilities import Augmented, as_a
from poe.algebra.energy import Energy
from poe.diagnostics.search import ModeSearch
from poe.kernels.gibbs import Gibbs
from poe.smc.phases import Phases, labels_of, weighed_basins
from poe.smc.products import Products, fit, one_hot, uniform
from poe.smc.starts import Start, sampler, weigh
from poe.spaces.conditionals import Conditionals
from poe.spaces.points import uniform_points
from poe.spaces.sites import sites_of

UNIFORM, CONSTANT, DRAWN, CLAMPED, ANNEALED, MINIMA = 64, 64, 64, 64, 128, 128  # starts of a kind
CONSTANT_COPIES, MINIMA_COPIES = 8, 16  # of each point with one value at all sites, and minimum
HOT = 0.02, 1.0  # inverse temperatures of annealed chains, first and last, rising by one factor
ANNEAL_SWEEPS, CHAIN_SWEEPS, MAX_DESCENT_SWEEPS = 32, 16, 32
SNAPSHOTS = 4  # states of each chain, of the second half of its sweeps
COMPONENTS = 1, 2, 4, 8, 16, 32, 64  # of which the best is taken
MIN_GAIN = 0.02  # nats of held-out likelihood a point, for more components to be taken
ROUNDS, DRAWS = 8, 4096  # of refitting, and of each
GOOD_SHARE = 0.5  # effective share of the draws at which refitting ends
DEFENSIVE, WIDE, FLAT = 0.1, 0.05, 0.01  # shares of even weights, of flattened rates, of all points
FLATTENED = 0.6  # power of the rates of wide components
MOVES = 2  # sweeps after resampling


def search(
    energy: Energy, factors: Sequence[Energy], generator: torch.Generator, *, share: float = 1.0
) -> Phases:
    """The phases of a discrete energy, and a mixture near to it. `factors` draw samples;
    `share` of the usual number of starts and sweeps is made."""
    work = _Work(energy, generator, share)
    raw = work.starts(factors)
    annealed = work.annealed()
    ends = work.descended(torch.cat([raw, annealed]))
    minima = work.distinct(ends)
    count = min(work.some(MINIMA), MINIMA_COPIES * len(minima))
    some = minima[torch.arange(count) % max(len(minima), 1)]
    chains = work.chains(torch.cat([raw, annealed, some]))
    places = work.sites.places(chains, work.event)  # (chains, snapshots, n)
    fitted, found = work.refitted(work.mixture(places), places.flatten(0, 1))
    labels = labels_of(fitted, places.flatten(0, 1))
    basins = weighed_basins(found, fitted, labels)
    counted = sum(basin.counted for basin in basins)
    record = ModeSearch(len(ends), len(basins), counted, energies=work.energies)
    return Phases(found, fitted, labels, basins, minima, record)


class _Work:
    """The steps of one search, and what they cost."""

    def __init__(self, energy: Energy, generator: torch.Generator, share: float) -> None:
        self.energy, self.generator, self.share = energy, generator, share
        self.sites, self.event = sites_of(energy), len(energy.event_shape)
        self.n, self.energies = len(self.sites.counts), 0.0
        self.conditionals = Conditionals(energy)
        stated = len(self.conditionals.blocks(energy.device)) < self.n
        self.cost = 1 if stated else int(self.sites.counts.sum())  # energies of a sweep

    def some(self, count: int) -> int:
        """This share of a count, at least 8."""
        return max(8, math.ceil(self.share * count))

    def places(self, x: Tensor) -> Tensor:
        """The index of each site's value, (n, sites)."""
        return self.sites.places(x, self.event)

    def starts(self, factors: Sequence[Energy]) -> Tensor:  # -> (n, *event)
        """Uniform points, points with one value at all sites, draws of factors, and visible units
        where one hidden unit is set."""
        found = [uniform_points(self.energy, self.some(UNIFORM), self.generator)]
        values = torch.arange(min(self.sites.max_count, CONSTANT)).repeat(CONSTANT_COPIES)
        places = values.unsqueeze(1).minimum(self.sites.counts.cpu() - 1)[: CONSTANT * 2]
        found.append(self.put(places.to(self.energy.device)))
        for factor in factors:
            x = sampler(factor, self.energy)(self.some(DRAWN), self.generator)
            found.append(x.to(found[0]))
        found.append(self.clamped())
        x = torch.cat(found)
        with torch.no_grad():
            good = self.energy(x).isfinite()
        self.energies += len(x)
        return x[good]

    def put(self, places: Tensor) -> Tensor:  # (n, sites) -> (n, *event)
        """Points from the indices of their values."""
        x = uniform_points(self.energy, 1, torch.Generator(self.generator.device)).expand(
            len(places), *self.energy.event_shape
        )
        at = torch.arange(self.n, device=x.device)
        return self.sites.put(x.clone(), at, places, self.event)

    def clamped(self) -> Tensor:  # -> (n, *event)
        """The likeliest visible units where one hidden unit has one of its values, and the others
        are all at their lowest value, or uniform."""
        augmented = as_a(self.energy, Augmented)
        if augmented is None:
            return uniform_points(self.energy, 0, self.generator)
        joint: Energy = augmented.joint
        sites, hidden = sites_of(joint), torch.arange(self.n, joint.event_shape.numel())
        hidden = hidden[torch.randperm(len(hidden), generator=torch.Generator().manual_seed(0))]
        rows = []
        for site in hidden.tolist()[: CLAMPED // 4]:
            z = uniform_points(joint, 4, self.generator)
            z[2:, self.n :] = sites.values(z)[0][self.n :, 0]
            z[0::2, site], z[1::2, site] = sites.values(z)[0][site, :2]
            rows.append(z)
        z = torch.cat(rows)
        known = Conditionals(joint)
        visible = torch.arange(self.n, device=z.device)
        for _ in range(2):  # visible units of a deep machine depend on hidden ones alone
            logits = known.logits(z, visible)
            best = (logits > 0).long() if known.sites.binary else logits.argmax(-1)
            z = known.sites.put(z, visible, best, 1)
        x = z[:, : self.n].reshape(-1, *self.energy.event_shape)
        return x.to(uniform_points(self.energy, 0, self.generator))

    def annealed(self) -> Tensor:  # -> (n, *event)
        """Ends of chains that are cooled from nearly infinite temperature to 1."""
        x = uniform_points(self.energy, self.some(ANNEALED), self.generator)
        first, last = (math.log10(beta) for beta in HOT)
        for beta in torch.logspace(first, last, self.some(ANNEAL_SWEEPS)).tolist():
            x = self.swept(self.energy**beta if beta < 1 else self.energy, x, 1)
        return x

    def swept(self, energy: Energy, x: Tensor, sweeps: int) -> Tensor:
        """x after sweeps of block Gibbs."""
        kernel = Gibbs(sweeps=sweeps)
        state = kernel.init(energy, x)
        self.energies += len(x) * (1 + sweeps * self.cost)
        return kernel.step(energy, state, kernel.noise(state, self.generator))[0].x

    def descended(self, x: Tensor) -> Tensor:
        """Where greedy single-site descents end: each site in turn takes its likeliest value, given
        all others, as long as any changes. Hidden units are summed over."""
        at = torch.arange(self.n, device=x.device)
        blocks = at.split(1) if self.conditionals.hidden else self.conditionals.blocks(x.device)
        with torch.no_grad():
            for _ in range(MAX_DESCENT_SWEEPS):
                before = x
                for block in blocks:
                    logits = self.conditionals.logits(x, block)
                    if logits.ndim == x.ndim - self.event + 1:
                        logits = torch.stack([torch.zeros_like(logits), logits], -1)
                    own = self.places(x)[:, block].unsqueeze(-1)
                    here = logits.gather(-1, own)
                    best = torch.where(
                        logits.max(-1, keepdim=True).values > here, logits.argmax(-1, True), own
                    )
                    x = self.sites.put(x, block, best.squeeze(-1), self.event)
                self.energies += len(x) * self.cost
                if torch.equal(before, x):
                    break
        return x

    def distinct(self, x: Tensor) -> Tensor:
        """Distinct points of finite energy, those of the lowest first."""
        with torch.no_grad():
            values = self.energy(x)
        self.energies += len(x)
        x = x[values.isfinite()].unique(dim=0)
        with torch.no_grad():
            return x[self.energy(x).argsort(stable=True)]

    def chains(self, x: Tensor) -> Tensor:  # (n, *event) -> (n, snapshots, *event)
        """States of chains at temperature 1, in the second half of their sweeps."""
        half = self.some(CHAIN_SWEEPS) // 2
        x, found = self.swept(self.energy, x, half), []
        for _ in range(SNAPSHOTS):
            x = self.swept(self.energy, x, half // SNAPSHOTS)
            found.append(x)
        return torch.stack(found, 1)

    def mixture(self, places: Tensor) -> Products:  # (chains, snapshots, n)
        """The mixture fitted to the chains, with the number of components that predicts held-out
        chains best."""
        order = torch.randperm(len(places), generator=self.generator, device=places.device)
        one, two = (places[half].flatten(0, 1) for half in order.tensor_split(2))
        best, count = -math.inf, 1
        for components in COMPONENTS:
            found = fit(self.energy, one, torch.ones(len(one)), self.seeded(one, components))
            held = found.mixed((FLAT, uniform(self.energy))).of_components(two).logsumexp(-1)
            score = float(held.double().mean())
            if score > best + MIN_GAIN:
                best, count = score, components
        every = places.flatten(0, 1)
        return fit(self.energy, every, torch.ones(len(every)), self.seeded(every, count))

    def seeded(self, places: Tensor, count: int) -> Tensor:  # (N, n) -> (N, K)
        """Responsibilities of the nearest of `count` seeds, each far from those before: chosen with
        probability proportional to the squared number of sites that differ (k-means++; Arthur and
        Vassilvitskii 2007, SODA)."""
        hot = one_hot(places, torch.empty(1, 1, self.sites.max_count))
        nearest, label = torch.full((len(places),), math.inf), torch.zeros(len(places)).long()
        chosen = torch.ones(len(places), dtype=torch.float64)
        for k in range(count):
            if not bool(chosen.sum() > 0):
                break
            seed = chosen.multinomial(1, generator=self.generator)
            distance = self.n - (hot @ hot[seed].T).squeeze(1)
            label = torch.where(distance < nearest, k, label)
            nearest = distance.minimum(nearest)
            chosen = nearest.double().square()
        return torch.nn.functional.one_hot(label, count).float()

    def refitted(self, first: Products, known: Tensor) -> tuple[Products, Start]:
        """The mixture, fitted again to what its importance weights say, until these are even: that
        of the round of the largest effective share, and the same with wide components, weighed. A
        round whose log Z is surely below that of another has missed mass, and does not count."""
        rounds: list[tuple[Products, Start]] = []
        current, best = first, None
        for _ in range(ROUNDS):
            proposal = current.mixed(
                (DEFENSIVE, current.even()),
                (WIDE, current.flattened(FLATTENED)),
                (FLAT, uniform(self.energy)),
            )
            rounds.append((current, weigh(proposal, self.energy, self.generator, DRAWS)))
            self.energies += DRAWS
            starts = [start for _, start in rounds if start.ess > 0]
            if not rounds[-1][1].ess > 0:
                break
            least = max(start.interval[0] for start in starts)
            kept = [pair for pair in rounds if pair[1].ess > 0 and pair[1].interval[1] >= least]
            best = max(kept, key=lambda pair: pair[1].ess)
            if best[1].ess >= GOOD_SHARE * DRAWS:
                break
            current = self.next(current, rounds[-1][1], known)
        return rounds[0] if best is None else best

    def next(self, current: Products, found: Start, known: Tensor) -> Products:
        """The mixture after one round: its components have the mass that the weights give them, and
        follow resampled and moved draws, together with the states of the chains."""
        weights = found.log_weights.softmax(0)
        share = weights @ current.responsibilities(found.x)  # mass of each component
        near = current.of_components(known).double().softmax(1)
        ratio = share.clamp(min=1e-4) / near.sum(0).clamp(min=1e-9)
        old = near @ ratio  # weights of the states of the chains
        take = min(1.0, found.ess / 256)  # few effective draws say little
        index = weights.multinomial(DRAWS, True, generator=self.generator)
        moved = self.places(self.swept(self.energy, found.x[index], MOVES))
        places = torch.cat([known, moved])
        new = torch.full((len(moved),), take / len(moved), dtype=torch.float64)
        weight = torch.cat([old / old.sum() * (1 - take / 2), new / 2])
        weight = weight / weight.sum() * len(places) / 2
        start = current.of_components(places).double().softmax(1)
        return self.grown(places, weight, start)

    def grown(self, places: Tensor, weight: Tensor, start: Tensor) -> Products:
        """The mixture fitted to weighed points from these responsibilities or, where that predicts
        held-out points better, from those with each component cut in two at random."""
        held = torch.rand(len(places), generator=self.generator) < 1 / 3
        most = COMPONENTS[-1]
        cut = torch.rand(start.shape, generator=self.generator, dtype=torch.float64)
        wide = torch.cat([start * cut, start * (1 - cut)], 1)
        scores = []
        for near in [start, wide] if 2 * start.shape[1] <= 2 * most else [start]:
            found = fit(self.energy, places[~held], weight[~held], near[~held])
            logs = (
                found.mixed((FLAT, uniform(self.energy))).of_components(places[held]).logsumexp(-1)
            )
            scores.append(float((weight[held] * logs).sum() / weight[held].sum()))
        better = len(scores) > 1 and scores[1] > scores[0] + MIN_GAIN
        return fit(self.energy, places, weight, wide if better else start)
