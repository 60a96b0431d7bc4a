"""The search for modes that comes before any sampler on R^n: starts, one batched descent,
clusters with Laplace masses, and a mixture fitted to weighed draws, which importance resampling and
annealing start from.

1. Starts: draws of samplable parts, and normals around 0 of all sizes from 10⁻⁸ to 10⁸.
2. All descend at once (`poe.smc.descent`); their ends are clustered in the local metric; each
   minimum m with Hessian H gets the mass exp(-E(m)) (2π)^(d/2) det H^(-1/2) (Laplace).
3. Points that are lower than these minima explain (`poe.smc.unexplained`), the heaviest of weighed
   draws of normals of many sizes around them (`poe.smc.scales`), and the ends of hot chains descend
   in their turn, until a round finds no further minimum.
4. The mixture is refitted to its weighed draws, with a new shape where weight stays (incremental
   mixture importance sampling), until Pareto k and the effective share are good.

References: Zhang, Carpenter, Gelman and Vehtari 2022, JMLR 23 (Pathfinder); Raftery and Bao 2010,
Biometrics 66 (IMIS); Cappé et al. 2008, Statistics and Computing 18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.diagnostics.search import ModeSearch
from poe.diagnostics.weights import pareto_k, weight_ess
from poe.mcmc.progress import Progress
from poe.smc.basins import RUN, Basin, confirmed, missed
from poe.smc.flat import Flat
from poe.smc.gaussians import Gaussians
from poe.smc.hot_chains import hot_chains
from poe.smc.minima import Minima
from poe.smc.pool import Pool
from poe.smc.resampling import estimate
from poe.smc.scales import PROFILES, Profile, Scales, Tails, starting_weights
from poe.smc.starts import Start, nearest, sampler
from poe.smc.unexplained import unexplained

MIN_STARTS, MAX_STARTS = 128, 16384  # descents
MAX_NUMBERS = 1 << 19  # of all starts together
MIN_NEAR_STARTS = 16  # the same where a part is near enough to resample
# gradients of a search, at least, and where a part is near; a share of them polishes minima
MIN_BUDGET, MIN_NEAR_BUDGET, POLISHING_SHARE = 20_000, 400, 0.5
MIN_REFITTED = 1024  # draws of a refit
MAX_OPERATIONS = 2e9  # of a search, as `poe.smc.flat` counts them
START_COST = 100  # gradients, about, for each start
DECADES = 8.0  # of scales around 1, on either side
MAX_EXPLORED = 1 << 15  # draws that are weighed in a round
BLOCK = 8192  # of these draws
# their sizes, and shares: a narrow mode beside a wide one is met most often somewhat outside of the
# wide one's own mass
EXPLORING = (
    Profile(1.0, math.inf, 0.05),
    Profile(1.12, math.inf, 0.1),
    Profile(1.25, math.inf, 0.2),
    Profile(1.6, math.inf, 0.25),
    Profile(2.0, math.inf, 0.15),
    Profile(2.5, math.inf, 0.05),
    Profile(4.0, 4.0, 0.08),
    Profile(8.0, 3.0, 0.05),
    Profile(30.0, 3.0, 0.04),
    Profile(300.0, 3.0, 0.03),
)
SHAPES_DIMENSIONS = 40  # up to which further shapes are fitted to weighed draws
UNEXPLAINED = 16  # points for each start, of which the energy alone is taken
MIN_UNEXPLAINED, UNEXPLAINED_ROUNDS = 8, 6  # descents of each size; rounds
HOT = (2.0, 6.0, 20.0)  # temperatures of chains
HOT_STEPS = 12
ROUNDS = 3  # of exploration
REFITS = 8
FITS = 2, 5  # the refits of shapes by expectation maximisation
FAR = 1e3, 1e5  # widths, between which the tails of a target are measured
MAX_GROWTH = 60.0  # nats for each factor e of distance, beyond which tails are light
MAX_IMPROPER_GROWTH = 0.99  # of d log r, that of a density without finite mass
MIN_FREEDOM = 0.3  # degrees of freedom of tails
MAX_TAILS = 1024  # directions
POPULATION_STEPS = 60
GOOD_K, GOOD_SHARE = 0.5, 0.25  # at which a mixture needs no further refit


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found: minima whose mass is confirmed, a mixture with weighed draws where one
    was fitted, and the record; `lowest` holds the minima (n, d), and `operations` is how many one
    gradient takes."""

    basins: tuple[Basin, ...]
    start: Start | None
    record: ModeSearch
    lowest: Tensor
    operations: float

    def judged(self, x: Tensor, size: float, log_z: float | None, names: str = "") -> ModeSearch:
        """The record with what draws x (n, d), of this effective number, lack."""
        if log_z is None:
            log_z = -math.inf if self.start is None else self.start.log_mean
        lacking = missed(self.basins, x.double(), size, log_z, names)
        return replace(self.record, missed=lacking)


def search(
    target: Energy,
    densities: Sequence[Energy],
    generator: torch.Generator,
    *,
    share: float = 1.0,
    progress: Progress | None = None,
) -> Found:
    """Searches a target over R^n. `densities` draw where it may have mass; `share` of the usual
    number of starts is made."""
    return _Search(Flat(target, progress), densities, generator, share).run()


class _Search:
    """A search on its way."""

    def __init__(
        self, flat: Flat, densities: Sequence[Energy], generator: torch.Generator, share: float
    ) -> None:
        self.flat, self.generator, self.densities = flat, generator, densities
        self.options = {"generator": generator, "dtype": torch.float64, "device": flat.like.device}
        flat.measured(torch.randn(8, flat.d, **self.options))
        self.near = share < 1  # something is near enough to resample: no fit is needed
        least = MIN_NEAR_BUDGET if self.near else MIN_BUDGET
        self.budget = max(least, share * MAX_OPERATIONS / flat.operations)
        most = min(MAX_STARTS, MAX_NUMBERS // flat.d)
        wanted = int(self.budget / START_COST)
        self.size = max(MIN_NEAR_STARTS if self.near else MIN_STARTS, min(most, wanted))
        self.minima = Minima(flat, max_gradients=self.budget * POLISHING_SHARE)

    @property
    def left(self) -> float:
        """Gradients that may still be spent; an energy counts as a third of one."""
        return self.budget - self.flat.gradients - self.flat.energies / 3

    def run(self) -> Found:
        """All rounds."""
        x, length = self.first_starts()
        if 8 * self.flat.d < self.budget / 10:
            self.minima.unit = self.units(x)
        self.minima.descend(x, length)
        mixture = self.rounds() if len(self.minima) else self.populated(None)
        start = None if mixture is None else self.refined(mixture)
        flat, found = self.flat, sorted(self.minima.found, key=lambda minimum: minimum.energy)
        run = RUN if RUN * len(found) < self.budget / 10 else RUN // 4
        few = found[: max(4, int(self.budget / 4 / run))]
        basins = confirmed(flat, few, self.generator, run)
        counts = float(flat.gradients), float(flat.energies)
        record = ModeSearch(self.minima.starts, len(found), len(basins), *counts)
        lowest = torch.stack([minimum.x for minimum in found]) if found else x[:0]
        return Found(tuple(basins), start, record, lowest, flat.operations)

    def rounds(self) -> Scales:
        """The mixture at all minima, after rounds of exploration until none finds a further one."""
        self.beyond()
        mixture = self.mixture()
        for number in range(1 if self.near else ROUNDS):
            before = len(self.minima)
            if number and self.left < self.budget / 4:
                break
            mixture = self.explored(mixture)
            if len(self.minima) == before and number:
                break
        return mixture

    # ---- starts

    def first_starts(self) -> tuple[Tensor, Tensor]:  # -> (n, d), (n)
        """Draws of the parts, and of normals of all sizes; and the natural length of a step."""
        count = max(min(MIN_STARTS, self.size) // 2, self.size // 4)
        size = 10 ** ((2 * torch.rand(count, **self.options) - 1) * DECADES)
        # as many again within the sizes that most models have
        usual = 10 ** ((2 * torch.rand(count // 2, **self.options) - 1) * 1.5)
        size = torch.cat([size[: count - count // 2], usual])
        x = [torch.randn(len(size), self.flat.d, **self.options) * size.unsqueeze(1)]
        length = [size * math.sqrt(self.flat.d)]
        each = max(1, count // max(1, len(self.densities)))
        for density in self.densities:
            drawn = sampler(density, self.flat.target)(each, self.generator)
            flat = drawn.reshape(each, self.flat.d).double()
            spread = (flat - flat.mean(0)).square().mean().sqrt().clamp(min=1e-8)
            x.append(flat)
            length.append(spread.expand(each) * math.sqrt(self.flat.d))
        return torch.cat(x), torch.cat(length)

    def units(self, x: Tensor) -> Tensor | None:
        """Sizes of the coordinates, from the curvature along each at the lowest starts, where they
        differ by more than ten; None where they do not."""
        energy = self.flat(x)
        best = x[energy.argsort()[:4]]
        found = []
        for point in best[self.flat(best).isfinite()]:
            scale = point.abs().clamp(min=1e-8)
            curvature = self.flat.hessian(point, scale).diagonal().abs()
            found.append(curvature.clamp(min=1e-30).rsqrt())
        if not found:
            return None
        size = torch.stack(found).log().median(0).values.exp()
        return size if bool(size.max() > 10 * size.min()) else None

    # ---- the mixture

    def tails(self) -> tuple[Tails | None, Profile | None]:
        """Tails of the target along coordinates and random directions from its lowest minimum:
        with E ~ a log r far out, a product of Student-t with a_i - 1 degrees of freedom, the least
        over coordinates, and a multivariate one with a - d; None where the energy grows faster."""
        best = min(self.minima.found, key=lambda minimum: minimum.energy)
        d, width = self.flat.d, best.root.square().sum(1).sqrt()
        directions = torch.cat([torch.eye(d).to(best.x), torch.randn(2 * d, d, **self.options)])
        directions = directions[: max(4, MAX_TAILS)] * width
        sides = torch.cat([directions, -directions])
        near = self.flat(best.x + FAR[0] * sides)
        far = self.flat(best.x + FAR[1] * sides)
        growth = (far - near) / math.log(FAR[1] / FAR[0])
        growth = torch.where(growth.isnan(), math.inf, growth)
        axes = float(growth.unflatten(0, (2, -1))[:, :d].min())
        if float(growth.unflatten(0, (2, -1))[:, d:].median()) < MAX_IMPROPER_GROWTH * d:
            raise ValueError(
                f"the energy of {self.flat.target} grows by less than {d} log|x| far out: it seems "
                "improper, with no finite mass to draw from"
            )
        every = float(growth.min())
        if not every < MAX_GROWTH:
            return None, None
        freedom = max(every - d, 0.0)
        wide = Profile(1.5, freedom, 0.2) if freedom >= MIN_FREEDOM else None
        product = None
        if wide is None and axes - 1 >= MIN_FREEDOM:
            product = Tails(best.x, 1.5 * width, min(axes - 1, 8.0))
        return product, wide

    def mixture(self) -> Scales:
        """Normals of many sizes at all minima, with Laplace's masses, none of them below .05 of the
        even share; of heavier tails where the target's are."""
        product, wide = self.tails()
        profiles = PROFILES if wide is None else (*PROFILES[:-1], wide)
        masses = torch.tensor(
            [minimum.log_mass for minimum in self.minima.found], dtype=torch.float64
        )
        shares = masses.softmax(0).clamp(min=0.05 / len(masses)).log()
        weights = shares.unsqueeze(1) + starting_weights(profiles).log()
        return Scales(
            weights,
            torch.stack([minimum.x for minimum in self.minima.found]),
            torch.stack([minimum.root for minimum in self.minima.found]),
            torch.Size(self.flat.event),
            self.flat.like,
            profiles,
            product,
        )

    def weigh(self, mixture: Scales, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """n draws (n, d), their log weights, -inf where the target has no mass, and energies."""
        points = mixture.sample(n, generator=self.generator)
        x = points.reshape(n, self.flat.d).double()
        energy = self.flat(x)
        logs = -energy - mixture.log_prob(points)
        logs = torch.where(logs.isnan(), -math.inf, logs)
        self.flat.progress.keep(self.flat.points(x), logs)
        return x, logs, energy

    def explored(self, mixture: Scales) -> Scales:
        """Draws of all sizes around all minima: the heaviest, and ends of hot chains, descend."""
        of_shapes = mixture.log_weights.exp().sum(1, keepdim=True)
        share = mixture.log_weights.new_tensor([profile.least for profile in EXPLORING])
        weights = (of_shapes + 0.5 / len(of_shapes)) * share
        wide = mixture.with_profiles(weights, EXPLORING)
        each = self.flat.operations + len(wide.means) * (self.flat.d**2 + 20 * len(EXPLORING))
        fitting = int(MAX_OPERATIONS / 4 / each) // BLOCK * BLOCK
        count = max(2 * self.size, min(fitting, MAX_EXPLORED))
        sizes = [min(BLOCK, count - done) for done in range(0, count, BLOCK)]
        x, logs = self.heaviest(wide, sizes, max(1, self.size // 8 // len(sizes)))
        few = x[len(x) // 2 :]
        starts = x if self.near else torch.cat([x, self.hot(wide, few)])
        length = mixture.distances(starts).min(1)
        spread = self.minima.widths_of()
        before = len(self.minima)
        self.minima.descend(starts, spread[length.indices.clamp(max=len(spread) - 1)])
        if len(self.minima) > before:
            self.beyond()
            new = self.minima.found[before:]
            masses = torch.tensor([m.log_mass for m in new], dtype=torch.float64)
            reference = float(logs)
            mixture = mixture.joined(
                torch.stack([m.x for m in new]),
                torch.stack([m.root for m in new]),
                (masses - reference).clamp(min=math.log(0.05 / len(new)), max=3.0),
            )
        return mixture

    def heaviest(
        self, wide: Scales, sizes: Sequence[int], each: int
    ) -> tuple[Tensor, Tensor]:  # -> (n, d), ()
        """Of blocks of draws the heaviest, so many of each, and then as many at random; and the log
        of the mean weight."""
        heavy, random, total = [], [], []
        for size in sizes:
            x, logs, _ = self.weigh(wide, size)
            order = logs.topk(min(each, size)).indices
            heavy.append(x[order[logs[order] > -math.inf]])
            random.append(x[:each])  # draws are independent
            total.append(logs.logsumexp(0))
        mean = torch.stack(total).logsumexp(0) - math.log(sum(sizes))
        return torch.cat([*heavy, *random]), mean

    def beyond(self) -> None:
        """Descends from points that are lower than the known minima explain, until none is new."""
        most, each = UNEXPLAINED * self.size, max(MIN_UNEXPLAINED, self.size // 256)
        flat, unit = self.flat, self.minima.unit
        for _ in range(UNEXPLAINED_ROUNDS):
            before = len(self.minima)
            x = unexplained(flat, self.minima.found, most, each, self.generator, unit)
            if len(x):
                self.minima.descend(x, self.minima.widths_of().max().expand(len(x)))
            if len(self.minima) == before:
                break

    def hot(self, mixture: Scales, x: Tensor) -> Tensor:
        """Ends of chains at several temperatures, in the metric of the nearest minimum."""
        x = x[self.flat(x).isfinite()]
        if not len(x):
            return x
        nearest, order = mixture.distances(x).argmin(1).sort(stable=True)
        x, counts = x[order], nearest.bincount(minlength=len(mixture.roots)).tolist()
        temperature = x.new_tensor(HOT)[torch.arange(len(x), device=x.device) % len(HOT)]
        metrics = list(zip(mixture.roots, counts, strict=True))
        return hot_chains(self.flat, x, metrics, temperature, HOT_STEPS, self.generator)

    # ---- refits

    def refined(self, mixture: Scales) -> Start:
        """The mixture after refits to weighed draws, and weighed draws of the best. All draws so
        far are used for a refit, weighed by the mean of the mixtures that they came from."""
        count = MIN_REFITTED // 4 if self.near else max(MIN_REFITTED, min(4 * self.size, 8192))
        pool = Pool(self.flat)
        starts: list[Start] = []
        most, stale = 0.0, 0
        for number in range(REFITS + 1):
            x, logs, energy = self.weigh(mixture, count)
            k, size = pareto_k(logs), float(weight_ess(logs))
            start = Start(mixture, self.flat.points(x), logs, size, k, 0)
            if size > 0:
                self.flat.progress.log_z = estimate(logs)
            starts.append(start)
            stale = 0 if size > 1.15 * most else stale + 1
            most = max(most, size)
            enough = GOOD_SHARE if number else 2 * GOOD_SHARE
            good = k <= GOOD_K and size >= enough * count
            if good or stale >= 3 or self.near or self.left < count / 3:
                break
            pool.add(mixture, x, energy)
            if number == 1 and self.flat.d <= SHAPES_DIMENSIONS:
                more = self.populated(mixture)
                mixture = mixture if more is None else more
            elif number in FITS and self.flat.d <= SHAPES_DIMENSIONS:
                mixture = pool.fitted(mixture, self.generator)
            else:
                mixture = pool.refitted(mixture, new_shapes=number > 1)
        return nearest(starts) or starts[-1]  # not one that has surely missed mass

    def populated(self, mixture: Scales | None) -> Scales | None:
        """With shapes fitted to chains of the target, which start from normals of usual sizes, from
        the parts and from the mixture; None where there are none."""
        x = self.population(mixture)
        if len(x) < 2 * (self.flat.d + 1):
            return mixture
        fitted = Gaussians.fitted(x, self.generator)
        if fitted is None:
            means, roots = x.mean(0, keepdim=True), torch.diag(x.std(0)).unsqueeze(0)
            weights = x.new_zeros(1)
        else:
            means, roots, weights = fitted.means, fitted.roots, fitted.log_weights
        if mixture is not None:
            return mixture.joined(means, roots, weights)
        spread = weights.double().unsqueeze(1) + starting_weights().log()
        return Scales(spread, means, roots, torch.Size(self.flat.event), self.flat.like)

    def population(self, mixture: Scales | None) -> Tensor:  # -> (n, d)
        """Ends of chains at temperature 1."""
        count = min(1024, self.size, max(32, int(self.left / 2 / POPULATION_STEPS)))
        size = 10 ** (2 * torch.rand(count, 1, **self.options) - 1)
        x = [torch.randn(count, self.flat.d, **self.options) * size]
        x += [
            sampler(density, self.flat.target)(count, self.generator).reshape(count, -1).double()
            for density in self.densities
        ]
        if mixture is not None:
            x.append(mixture.sample(count, generator=self.generator).reshape(count, -1).double())
        each = [part[: max(1, count // len(x))] for part in x]
        unit = torch.ones(self.flat.d).to(x[0]) if self.minima.unit is None else self.minima.unit
        one = x[0].new_ones(sum(map(len, each)))
        metric = [(torch.diag(unit), len(one))]
        ends = hot_chains(self.flat, torch.cat(each), metric, one, POPULATION_STEPS, self.generator)
        return ends[self.flat(ends).isfinite()]
