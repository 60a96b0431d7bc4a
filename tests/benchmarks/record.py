"""Records what a change of the code's structure must leave alone, and compares a checkout with it.

    PYTHONPATH=. python tests/benchmarks/record.py write record.json [--only SECTION ...]
    PYTHONPATH=. python tests/benchmarks/record.py compare record.json [--only ...] [--texts]
    PYTHONPATH=. python tests/benchmarks/record.py fixtures DIR

A record holds a flat table for each section: expressions and their facts, plans, estimates of
log Z, steps of kernels, losses, draws, files and texts. Numbers are kept without loss, tensors as a
digest with up to 16 of their values. Texts that people read (messages, reports, help) have keys
that begin with `text:`; they are counted apart, and their differences change the exit status with
`--texts` alone. The sections `parallel` (two processes) and `compiled` (needs a compiler) are
recorded where `--only` names them.

`write --only` replaces those sections of an existing record and keeps the others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import math
import os
import random
import re
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors
import torch
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import constraints

import experts
import poe
from experts import Beta, Exponential, Gamma, Ising, Normal, VonMises
from poe import as_energy

Table = dict[str, Any]
Make = Callable[[], poe.Energy]
F32, F64 = torch.float32, torch.float64
VALUES = 16  # numbers kept of each tensor
SMALL: Table = {"event_shape": (2,), "layers": 1, "hidden": 4}
TEXT = "text:"


def first_of(name: str, *modules: str) -> Any:
    """An attribute of the first of these modules that exists and has it."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"none of {', '.join(modules)} has {name}")


# ---------------------------------------------------------------- what is kept


def plain(value: Any) -> Any:
    """A value as JSON, without loss; of a tensor its digest and a few numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest = hashlib.sha256(dense.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        places = torch.linspace(0, max(dense.numel() - 1, 0), min(VALUES, dense.numel())).long()
        kept = dense.reshape(-1)[places].tolist()
        form = {"dtype": str(dense.dtype), "shape": list(dense.shape)}
        return {"sha256": digest, **form, "values": kept}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    return clean(str(value))


def clean(text: str) -> str:
    """A text without seconds, addresses, and the places of the checkout and of temporary files."""
    for place, name in (
        (tempfile.gettempdir(), "TMP"),
        (str(Path(poe.__file__).parents[1]), "ROOT"),
    ):
        text = re.sub(rf"{re.escape(place)}(/tmp\w+|/record-\w+)?", name, text)
    text = re.sub(r"\b0x[0-9a-f]{6,}", "0x", text)
    return re.sub(r", [0-9.]+ s$", "", text, flags=re.MULTILINE)


class Record:
    """The table of a section on its way."""

    def __init__(self) -> None:
        self.table: Table = {}

    def text(self, key: str, text: Any) -> None:
        """Keeps a text that people read."""
        self.table[f"{TEXT}{key}"] = clean(str(text))

    def add(self, key: str, compute: Callable[[], Any], keep: Callable[[Any], Any] = plain) -> Any:
        """Keeps and returns the result of a call, or keeps what it raises; and its warnings."""
        torch.manual_seed(0)
        found = None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = compute()
                self.table[key] = keep(found)
            except Exception as error:
                self.table[key] = {"raised": type(error).__name__}
                self.text(key, error)
        ours = [w for w in said if not issubclass(w.category, DeprecationWarning | FutureWarning)]
        if ours:
            self.table[f"{key}/warned"] = sorted({w.category.__name__ for w in ours})
            self.text(f"{key}/warned", "\n".join(dict.fromkeys(str(w.message) for w in ours)))
        return found


# ---------------------------------------------------------------- experts of this script


def ring(x: Tensor) -> Tensor:
    """Eight times the squared distance from the unit circle."""
    return 8 * (x.norm(dim=-1) - 1) ** 2


def wave(x: Tensor) -> Tensor:
    """A bounded energy that couples neighbours."""
    return (3 * x).sin().sum(-1) + 0.5 * x[..., 0] * x[..., -1].tanh()


def twist(x: Tensor) -> Tensor:
    """A map of the plane onto itself."""
    return x + 0.3 * x.flip(-1).tanh()


class Halve(nn.Module):
    """The map x -> x / 2 as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Stopping(poe.Energy):
    """A quartic energy with coupled neighbours that interrupts the run at a chosen evaluation."""

    left: ClassVar[int] = -1  # evaluations until the interrupt; below 0 there is none
    made: ClassVar[int] = 0

    def __init__(self, support: Any = None) -> None:
        super().__init__((3,), support=support, name="quartic")

    proper = bounded = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        Stopping.left -= 1
        Stopping.made += 1
        if Stopping.left == 0:
            raise KeyboardInterrupt
        return (x**4).sum(-1) / 4 + 0.7 * x[..., 0] * x[..., 1] - 0.4 * x[..., 1] * x[..., 2]


class Blurred(nn.Module):
    """The noise in a noised point, predicted for data from N(1, 1) in each direction."""

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return t[:, None] * (u - 1) / (1 + t[:, None] ** 2)


class Recurrent(nn.Module):
    """A small causal model: tokens (n, t) -> logits (n, t, levels)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(levels + 1, 4), nn.Linear(4, levels)
        self.cell = nn.GRU(4, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.cell(self.embed(tokens))[0])


def t(*values: float) -> Tensor:
    return torch.tensor(values)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers that are always the same."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(expert: Any, scale: float = 0.5) -> Any:
    """An expert as if it had been trained: its parameters away from where they start."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in expert.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g).to(p))
    return expert.eval().requires_grad_(False)


def made(shape: tuple[int, ...], seed: int = 0, **options: Any) -> poe.Energy:
    """A small autoregressive expert over discrete values."""
    torch.manual_seed(seed)
    return shaken(experts.MADE(shape, hidden=8, **options))


def ngram(length: int = 3, seed: int = 0) -> poe.Energy:
    """Texts of the words a, b and c."""
    return experts.NGram(numbers(4, 3, seed=seed), length, ("a", "b", "c"))


def normal(*loc: float, scale: float = 1.0, name: str | None = None) -> Any:
    return experts.Normal(torch.tensor(loc), scale * torch.ones(len(loc)), name=name)


def concepts(concept: str | None = None, sigma: float | None = None) -> Any:
    """A noise-conditional expert of 4 x 4 pictures, not trained."""
    torch.manual_seed(0)
    small: Table = {"widths": (4, 4), "classifier_widths": (4, 4), "embedding": 4}
    known: Table = {"concepts": ("red", "round"), "sigma_range": (0.1, 5.0)}
    network = experts.ConceptNetwork((1, 4, 4), **known, **small)
    return experts.NoiseConditional(shaken(network, 0.2), concept=concept, sigma=sigma)


def denoiser(sigma: float = 0.5, **facts: Any) -> Any:
    """A denoising network at one level of noise: a score and no energy, unless `facts` give one."""
    schedule = experts.NoiseSchedule.exploding(0.5, 30.0)
    return experts.Denoiser(Blurred(), (2,), schedule=schedule, sigma=sigma, **facts)


def both(*names: str) -> Make:
    """The product of experts of the plane."""
    return lambda: poe.product([PLANE[name]() for name in names])


PLANE: dict[str, Make] = {
    "n": lambda: normal(0.5, -1.0),
    "wide": lambda: normal(0.0, 0.0, scale=3.0),
    "tilted": lambda: Normal(t(0.0, 0.0), covariance=torch.tensor([[1.0, 0.6], [0.6, 2.0]])),
    "learnt": lambda: Normal(torch.ones(2), 0.5, learnable=True),
    "laplace": lambda: as_energy(td.Laplace(torch.zeros(2), 1.0)),
    "student": lambda: as_energy(td.StudentT(3.0, t(0.0, 1.0), 0.7)),
    "uniform": lambda: as_energy(td.Uniform(t(-1.0, 0.0), t(2.0, 1.5))),
    "gamma": lambda: Gamma(t(2.0, 0.8), 1.5),
    "rate": lambda: Exponential(t(0.5, 3.0)),
    "beta": lambda: Beta(t(2.0, 0.5), 3.0),
    "angle": lambda: VonMises(t(1.0, -2.0), 2.0),
    "circle": lambda: as_energy(ring, event_shape=(2,), bounded=True),
    "soft": lambda: experts.function(wave, (2,), link="softplus", bounded=True),
    "root": lambda: experts.function(wave, (2,), link="square"),
    "neural": lambda: experts.MLPEnergy((2,), hidden=(6,)),
    "boltzmann": lambda: experts.GaussianRBM(numbers(2, 3), numbers(2), t(0.5, 1.5)),
    "flow": lambda: shaken(poe.create("flow", kind="realnvp", **SMALL)),
    "order": lambda: shaken(experts.MixtureMADE((2,), components=2, hidden=6)),
    "line": lambda: poe.on(normal(1.0), [1], (2,)),
    "part": lambda: poe.on(Gamma(t(3.0), 1.0), [0], (2,)),
}
FALLS: dict[str, Make] = {  # known to fall off, or to grow, as a Gaussian
    "sharp": lambda: denoiser(energy="denoised", bounded=True),
    "blurred": lambda: denoiser(2.0, energy="denoised", bounded=True),
    "judge": lambda: shaken(experts.Discriminator(event_shape=(2,), hidden=(4,))),
    "soft": PLANE["soft"],
}
BITS: dict[str, Make] = {
    "bits": lambda: experts.Bernoulli(t(0.2, 0.9, 0.5)),
    "coins": lambda: as_energy(td.Bernoulli(t(0.3, 0.6, 0.5))),
    "rbm": lambda: experts.RBM(numbers(3, 2), numbers(3), numbers(2)),
    "ising": lambda: Ising((3,), 0.4, 0.1, bits=True),
    "dbm": lambda: experts.DBM([numbers(2, 1)]),
    "made": lambda: made((3,)),
    "counts": lambda: experts.Poisson(t(1.0, 2.0, 0.5)),
    "tries": lambda: as_energy(td.Binomial(2, t(0.3, 0.5, 0.8))),
    "pairs": lambda: as_energy(wave, event_shape=(3,), support=constraints.boolean),
    "plain": lambda: normal(0.0, 0.0, 0.0),
}
WORDS: dict[str, Make] = {
    "rows": lambda: experts.Categorical(numbers(3, 3)),
    "sure": lambda: experts.Categorical(probs=t(0.2, 0.8, 0.0).repeat(3, 1)),
    "potts": lambda: experts.Potts((3,), 3, 0.5, numbers(3, 3)),
    "made": lambda: made((3,), levels=3, order=[2, 0, 1]),
    "text": lambda: ngram(),
    "torch": lambda: as_energy(td.Categorical(logits=numbers(3, 3, seed=1))),
}
SHARES: dict[str, Make] = {
    "dirichlet": lambda: experts.Dirichlet(t(1.5, 2.0, 3.0)),
    "sparse": lambda: as_energy(td.Dirichlet(t(0.5, 1.0, 1.0))),
    "wave": lambda: as_energy(wave, event_shape=(3,), support=constraints.simplex, bounded=True),
    "space": lambda: normal(0.0, 0.0, 0.0),
    "box": lambda: Beta(t(2.0, 2.0, 2.0), 2.0),
}
SPINS: dict[str, Make] = {
    "ising": lambda: Ising((2, 2), 0.4, 0.1),
    "field": lambda: Ising((2, 2), 0.0, numbers(2, 2)),
    "graph": lambda: Ising((2, 2), 0.3, edges=[(0, 3), (1, 2)], learnable=True),
    "plain": lambda: Normal(torch.zeros(2, 2), torch.ones(2, 2)),
}
_EDGES = [[0, 0], [1, 1], [-4, 0.5], [9, 9], [0.3, math.inf], [math.nan, 0], [2, 1.5]]
_TRIPLES = torch.cartesian_prod(*3 * [torch.arange(3.0)])
_OUTSIDE = torch.tensor([[0.0, 1.0, 3.0], [0.5, 1.0, 0.0], [-1.0, 0.0, 1.0]])
POINTS: dict[str, tuple[dict[str, Make], Tensor]] = {
    "plane": (PLANE, torch.cat([numbers(7, 2), numbers(4, 2).abs() / 3, torch.tensor(_EDGES)])),
    "falls": (FALLS, numbers(10, 2, scale=2.0)),
    "bits": (BITS, torch.cat([_TRIPLES[::2], _OUTSIDE])),
    "words": (WORDS, torch.cat([_TRIPLES[1::2], _OUTSIDE])),
    "shares": (SHARES, torch.cat([numbers(8, 3).softmax(-1), torch.eye(3), numbers(3, 3)])),
    "spins": (SPINS, torch.cat([numbers(9, 2, 2).sign(), torch.zeros(1, 2, 2)])),
}
POWERS = (2, 0.5, -1, 1 / 3, 0, -0.3, 1.5, 0.1 + 0.2)


def pool(group: str, dtype: torch.dtype) -> list[poe.Energy]:
    """The experts of a group, named and in this precision."""
    found = []
    for name, make in POINTS[group][0].items():
        torch.manual_seed(0)
        found.append(make().to(dtype))
        found[-1].name = name
    return found


def known(e: poe.Energy) -> poe.Energy:
    """The energy with a log Z: its own, else a stated one."""
    return e if e.log_z is not None else poe.shift(e, 0.0, log_z=poe.Estimate(0.5, 0.01))


COMPOSE: dict[str, Callable[[poe.Energy, poe.Energy, random.Random], poe.Energy]] = {
    "&": lambda a, b, _: a & b,
    "|": lambda a, b, _: a | b,
    "-": lambda a, b, _: a - b,
    "/": lambda a, b, _: a / b,
    "~": lambda a, b, _: b & ~a,
    "**": lambda a, b, rng: a ** rng.choice(POWERS),
    "learned": lambda a, b, _: a ** nn.Parameter(torch.tensor(0.7, dtype=a.dtype)) & b,
    "product": lambda a, b, _: poe.product([a, b, a], [0.5, -0.25, 1.5]),
    "mixture": lambda a, b, _: poe.mixture([known(a), known(b)], weights=[1, 3]),
    "blend": lambda a, b, _: poe.mixture([a, b, a]),
    "contrast": lambda a, b, _: poe.contrast(a, b, strength=2.5),
    "shift": lambda a, b, _: poe.shift(a, 0.75) & b,
    "stated": lambda a, b, _: poe.shift(a, -0.5, log_z=poe.Estimate(0.25, 0.01)),
    "@": lambda a, b, _: (a @ twist) & b,
    "pullback": lambda a, b, _: poe.pullback(a, Halve()) & b,
    "combine": lambda a, b, _: poe.combine([a & b, b], prior=b),
    "conjunction": lambda a, b, _: poe.conjunction(b, [a & b]),
    "parse": lambda a, b, _: poe.parse(str(a & b), poe.names(a & b)),
}


PRODUCTS = {kind: COMPOSE[kind] for kind in ("&", "/", "~", "**", "learned", "product", "combine")}


def grown(rng: random.Random, group: str, leaves: list[Any], depth: int, refused: list[str]) -> Any:
    """A random composition; one that is refused leaves its first part, and a note."""
    if depth == 0:
        return rng.choice(leaves)
    a = grown(rng, group, leaves, depth - 1, refused)
    b = grown(rng, group, leaves, rng.randrange(depth), refused)
    name, build = rng.choice(list((PRODUCTS if group == "falls" else COMPOSE).items()))
    try:
        return build(a, b, rng)
    except (TypeError, ValueError) as error:
        refused.append(f"{name}: {type(error).__name__}: {error}")
        return a


def placed(rng: random.Random, e: poe.Energy, x: Tensor) -> tuple[poe.Energy, Tensor]:
    """Now and then the same on part of a larger event, or with values filled in; with points."""
    n = e.event_shape.numel()
    kind = rng.randrange(8)
    if kind == 0:
        shape = (*e.event_shape[:-1], e.event_shape[-1] + 1)
        places = rng.sample(range(math.prod(shape)), n)
        wide = x.repeat(1, *[2] * len(shape))[(slice(None), *map(slice, shape))]
        return poe.on(e, places, shape), wide
    if kind == 1:
        mask = torch.arange(n) == rng.randrange(n)
        return e @ poe.fill(x[0], mask.reshape(e.event_shape)), x.flatten(1)[:, ~mask]
    return e, x


# ---------------------------------------------------------------- sections

FACTS = ("support", "proper", "bounded", "growth", "flat", "log_z", "event_shape")
EXPRESSIONS, PLANS = 300, 40


def expressions_of(
    count: int, dtype: torch.dtype
) -> Iterator[tuple[str, poe.Energy, Tensor, list[str]]]:
    """Seeded random expressions with a name, points, and what was refused on the way."""
    pools = {group: pool(group, dtype) for group in POINTS}
    groups = ["plane"] * 5 + list(POINTS)
    for index in range(count):
        rng, refused = random.Random(index), []  # type: ignore[var-annotated]
        group = groups[index % len(groups)]
        e = grown(rng, group, pools[group], rng.randint(1, 4), refused)
        e, x = placed(rng, e, POINTS[group][1].to(dtype))
        yield f"{str(dtype).removeprefix('torch.')}/{index:03d}", e, x, refused


def expressions() -> Table:
    """Random expressions: text, facts, energies, scores, closed forms, in two precisions."""
    record = Record()
    for dtype in (F32, F64):
        for key, e, x, refused in expressions_of(EXPRESSIONS, dtype):
            if refused:
                record.table[f"{key}/refused"] = [said.split(": ")[:2] for said in refused]
                record.text(f"{key}/refused", "\n".join(refused))
            record.add(f"{key}/str", lambda e=e: str(e))
            record.add(f"{key}/facts", lambda e=e: {fact: getattr(e, fact) for fact in FACTS})
            record.add(f"{key}/energy", lambda e=e, x=x: e(x))
            record.add(f"{key}/gradient", lambda e=e, x=x: e.value_and_grad(x))
            record.add(f"{key}/score", lambda e=e, x=x: e.score(x))
            closed = record.add(f"{key}/simplified", lambda e=e: poe.simplify(e), str)
            if closed is not None and closed is not e:
                record.add(f"{key}/closed", lambda c=closed, x=x: [c(x), c.log_z])
            record.add(f"{TEXT}{key}/repr", lambda e=e: repr(e), clean)
    return record.table


def plans() -> Table:
    """What would be done to draw: random expressions, and the targets of `draws`."""
    record = Record()
    targets: list[tuple[str, Any, Table]] = [(k, e, {}) for k, e, *_ in expressions_of(PLANS, F64)]
    targets += [(name, make(), options) for name, (make, options) in TARGETS.items()]
    for key, e, options in targets:
        asked = {name: options[name] for name in ("method", "kernel") if name in options}
        plan = record.add(key, lambda e=e, asked=asked: poe.plan(e, **asked), _plan)
        if plan is not None:
            record.text(key, plan)
    return record.table


def _plan(plan: poe.Plan) -> Any:
    kernel = None if plan.kernel is None else type(plan.kernel).__name__
    return plain([plan.methods, str(plan.target), [str(start) for start in plan.starts], kernel])


def estimates() -> Table:
    """log Z by each method, brackets, normalised energies, modes, Stein tests, anomaly scores."""
    record = Record()
    a, b = normal(0.0, 0.0, name="a"), normal(1.0, 0.5, name="b")
    curved = a & PLANE["circle"]()
    far = b & as_energy(wave, event_shape=(2,), bounded=True)
    line = made((6,)) & made((6,), 1)
    fields = experts.Bernoulli(0.6 + numbers(3, 3) / 20)
    grid = Ising((3, 3), numbers(18, scale=0.3), bits=True) & fields
    targets = {"curved": curved, "far": far, "line": line, "grid": grid}
    for name, e in targets.items():
        for method in (None, "sequential", "importance", "annealed", "ais"):
            call = lambda e=e, method=method: poe.log_z(e, method=method, draws=512, seed=1)  # noqa: E731
            record.add(f"log_z/{name}/{method}", call)
    record.add("log_z/proposal", lambda: poe.log_z(far, proposal=a, draws=512, seed=2))
    record.add("log_z/closed", lambda: poe.log_z(a & b))
    cut = both("beta", "root")()
    record.add("log_z/bounded", lambda: poe.log_z(cut, draws=512, seed=2))
    exact = poe.sample(curved, 64, seed=3).x
    record.add("bracket", lambda: poe.bracket(curved, exact, draws=64, seed=4))
    shifted = lambda: poe.normalize(curved, draws=512, seed=5)  # noqa: E731
    record.add("normalize", shifted, lambda e: [str(e), plain(e.log_z)])
    modes = {"curved": curved, "angle": both("angle", "soft")(), "bits": BITS["rbm"]()}
    modes["cooled"] = Ising((5, 5), numbers(50), bits=True) & made((5, 5), 2)
    for name, e in modes.items():
        record.add(f"mode/{name}", lambda e=e: poe.mode(e, seed=6))
    record.add("mode/init", lambda: poe.mode(far, init=t(0.2, 0.1)[None]))
    for name, e in {"right": curved, "wrong": b}.items():
        x = poe.sample(curved, 200, seed=7).x
        record.add(f"stein/{name}", lambda e=e, x=x: poe.stein_test(e, x))
    record.add("anomaly", lambda: poe.anomaly_score(numbers(9, 2), a, b))
    return record.table


KERNELS: dict[str, Any] = {
    "Langevin": poe.Langevin(0.3),
    "unadjusted Langevin": poe.Langevin(0.1, metropolis=False),
    "Hamiltonian": poe.Hamiltonian(0.3, 1.2),
    "Microcanonical": poe.Microcanonical(0.3, 1.2),
    "unadjusted Microcanonical": poe.Microcanonical(0.2, 1.0, metropolis=False),
    "RandomWalk": poe.RandomWalk(0.5),
    "IndependentMetropolis": poe.IndependentMetropolis(normal(0.0, 0.0, 0.0)),
    "Tempered": poe.Tempered(normal(0.0, 0.0, 0.0), t(0.0, 0.3, 1.0), poe.Langevin(0.3)),
    "Cycle": poe.Cycle([poe.Langevin(0.3), poe.RandomWalk(0.5)]),
    "LineIntegral": poe.LineIntegral(0.9),
    "Gibbs": poe.Gibbs(),
    "random Gibbs": poe.Gibbs("random", sweeps=2),
    "DiscreteLangevin": poe.DiscreteLangevin(0.4),
    "GibbsWithGradients": poe.GibbsWithGradients(),
    "Flip": poe.Flip(2),
}
DISCRETE = (poe.Gibbs, poe.DiscreteLangevin, poe.GibbsWithGradients, poe.Flip)
KERNEL_FACTS = ("exact", "ready", "needs_gradient", "target_acceptance", "gradients_per_step")


def kernels() -> Table:
    """A step of each kernel, and a tuned run that is interrupted and goes on from its file."""
    record = Record()
    for name, kernel in KERNELS.items():
        scored = isinstance(kernel, poe.LineIntegral)
        bits = isinstance(kernel, DISCRETE)
        e = denoiser() if scored else Stopping(constraints.boolean if bits else None)
        x = (numbers(5, 3) > 0).float() if bits else numbers(5, *e.event_shape)
        facts = {fact: getattr(kernel, fact) for fact in KERNEL_FACTS}
        record.add(f"{name}/facts", lambda facts=facts: facts)
        record.add(f"{name}/step", lambda e=e, kernel=kernel, x=x: _step(e, kernel, x))
        options: Table = {"kernel": kernel, "seed": 2, "shards": 2, "chains": 4, "warmup": 40}
        options |= {"init": x[:4]} if scored else {}
        record.add(f"{name}/run", lambda e=e, options=options: _resumed(e, options))
    return record.table


def _step(e: poe.Energy, kernel: Any, x: Tensor) -> Any:
    """The state, the noise, and what one step and one step of warm-up make of them."""
    state = kernel.init(e, x)
    noise = kernel.noise(state, torch.Generator().manual_seed(1))
    return [state, noise, kernel.step(e, state, noise), kernel.learn(e, state, noise)]


def _resumed(e: poe.Energy, options: Table) -> Any:
    """The draws of a whole run, of one that was interrupted, and of the same after it went on."""
    found: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        for share in (0.0, 0.9, 0.0) if isinstance(e, Stopping) else (0.0,):
            Stopping.left, Stopping.made = int(share * (found[-1] if found else 0)) or -1, 0
            path = f"{folder}/run" if found else None
            try:
                draws = poe.sample(e, 40, checkpoint=path, **options)
                found += [draws.x, draws.partial]
            except KeyboardInterrupt:
                found.append("interrupted before the first draw")
            found.append(Stopping.made)
    return found


def objective(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Builds a loss, with a random stream of its own."""
    make = first_of(name, "poe.training", "poe.losses")
    return lambda: make(*arguments, generator=torch.Generator().manual_seed(4), **options)


def fit_of(fitted: Any) -> Any:
    """The record of a fit: of the energy, before; of each copy, now."""
    return getattr(fitted, "fit", None) or fitted.parts[0].fit


def training() -> Table:
    """A few steps of each loss, and densities fitted to samples."""
    record = Record()
    batch, bits = 1 + numbers(32, 2), (numbers(32, 3) > 0).float()
    cd, pcd = "ContrastiveDivergence", "PersistentContrastiveDivergence"
    mlp, gauss = PLANE["neural"], PLANE["learnt"]
    rbm = lambda: experts.RBM(numbers(3, 2), learnable=True)  # noqa: E731
    cases: dict[str, tuple[Callable[[], Any], Make, Tensor]] = {
        "likelihood": (first_of("MaximumLikelihood", "poe.training", "poe.losses"), gauss, batch),
        "CD": (objective(cd, k=2), mlp, batch),
        "CD, kernel": (objective(cd, kernel=poe.Langevin(0.3)), mlp, batch),
        "CD of bits": (objective(cd), rbm, bits),
        "PCD": (objective(pcd, chains=16, k=2, buffer=24, restart=0.1), mlp, batch),
        "PCD of bits": (objective(pcd, chains=8), rbm, bits),
        "denoising": (objective("DenoisingScoreMatching", 0.5), mlp, batch),
        "sliced": (objective("SlicedScoreMatching", 2), mlp, batch),
        "contrastive": (objective("NoiseContrastive", PLANE["wide"](), ratio=2), mlp, batch),
        "product": (objective("DenoisingScoreMatching", 0.5), both("neural", "learnt"), batch),
    }
    for name, (make, build, data) in cases.items():
        record.add(name, lambda make=make, build=build, data=data: _trained(build(), make(), data))
    small: Table = {"kind": "realnvp", "layers": 1, "hidden": 4, "seed": 3}
    x = numbers(150, 2)
    weighed: Table = {"weights": x[:, 0].abs() + 1, "copies": 2, "name": "chain"}
    for name, (samples, options) in {
        "fit": (x.abs(), {"support": (0.0, None), "copies": 1}),
        "fit of weighed samples": (x, weighed),
    }.items():
        fit = lambda samples=samples, options=options: poe.fit_density(samples, **options, **small)  # noqa: E731
        e = record.add(
            name,
            fit,
            lambda e: plain([str(e), e(x[:20].abs()), fit_of(e)]),
        )
        record.text(name, None if e is None else fit_of(e))
    return record.table


def _trained(e: poe.Energy, loss: Any, data: Tensor) -> Any:
    """The losses of four steps, what was learned, and what the loss keeps."""
    optimiser, found = torch.optim.SGD(e.parameters(), lr=0.05), []
    for _ in range(4):
        optimiser.zero_grad()
        found.append(loss(e, data))
        found[-1].backward()
        optimiser.step()
    kept = loss.state_dict() if hasattr(loss, "state_dict") else {}
    return [torch.stack(found), dict(e.named_parameters()), kept]


def combined() -> poe.Energy:
    """Two posteriors in tension, under a prior that counts once."""
    p, q = normal(0.0, 0.0, name="p"), normal(4.0, 3.0, name="q")
    return poe.combine([p, q], prior=normal(0.0, 0.0, scale=9.0, name="prior"))


def stated(name: str) -> poe.Energy:
    """A factor of the plane cut by another, with a log Z that is stated."""
    return poe.shift(both(name, "soft")(), 0.0, log_z=poe.Estimate(-1.0, 0.1))


RING, HARD = both("circle", "wide"), both("neural", "circle")
TARGETS: dict[str, tuple[Make, Table]] = {
    "exact": (both("n", "tilted"), {}),
    "mixture": (lambda: poe.mixture([PLANE["n"](), PLANE["laplace"]()], weights=[1, 2]), {}),
    "enumerate": (lambda: BITS["rbm"]() & BITS["pairs"](), {}),
    "parts": (lambda: poe.mixture([stated("n"), stated("wide")]), {}),
    "sequential": (lambda: made((24,)) & made((24,), 1) ** 0.5, {}),
    "texts": (lambda: ngram(14) & ngram(14, 1), {"shards": 2}),
    "importance": (both("tilted", "soft"), {}),
    "annealed": (RING, {"method": "annealed"}),
    "annealed in shards": (RING, {"method": "annealed", "shards": 4}),
    "chains": (HARD, {"method": "chains", "chains": 8}),
    "chains in shards": (RING, {"method": "chains", "chains": 8, "shards": 4}),
    "double precision": (lambda: both("neural", "student", "circle")().double(), {}),
    "double chains": (lambda: RING().double(), {"method": "chains", "chains": 4}),
    "thinned from init": (HARD, {"init": numbers(8, 2), "thin": 3, "warmup": 100}),
    "tempered": (RING, {"method": "tempered", "chains": 4}),
    "two modes": (lambda: (normal(-3.0, 0.0) | normal(3.0, 0.0)) & PLANE["soft"](), {}),
    "grid": (lambda: Ising((5, 5), 0.2, 0.1), {"kernel": poe.Gibbs(), "chains": 8}),
    "hidden units": (BITS["rbm"], {"kernel": poe.Gibbs(), "chains": 4}),
    "discrete": (lambda: Ising((5, 5), 0.2, bits=True) & made((5, 5), 3), {"method": "chains"}),
    "discrete annealed": (lambda: Ising((5, 5), 0.2, numbers(5, 5)), {"method": "annealed"}),
    "noise levels": (lambda: poe.conjunction(concepts(), [concepts("red")]), {"draws": 8}),
    "flow": (both("flow", "circle"), {}),
    "bounded support": (both("beta", "soft"), {}),
    "simplex": (lambda: SHARES["dirichlet"]() & SHARES["wave"](), {}),
    "combine": (combined, {}),
    "Hamiltonian": (RING, {"kernel": poe.Hamiltonian(), "chains": 4}),
    "Microcanonical": (RING, {"kernel": poe.Microcanonical(), "chains": 4}),
    "scores": (denoiser, {"kernel": poe.LineIntegral(0.9), "init": numbers(4, 2), "warmup": 20}),
    "mass unknown": (both("n", "root"), {}),
    "few draws": (RING, {"draws": 1, "chains": 1}),
    "no draws": (RING, {"draws": 0}),
}


KEPT = ("x", "chains", "energy", "log_z", "exact", "partial", "trusted", "expression", "agreement")


def _evidence(draws: poe.Draws) -> Any:
    kept = {name: getattr(draws, name) for name in KEPT}
    kept["notes"] = [len(draws.warnings), len(draws.conditions)]
    kept["moments"] = [draws.mean(), draws.mcse()]
    kept["diagnostics"] = draws.diagnostics.asdict()
    del kept["diagnostics"]["seconds"]
    return plain(kept)


def drawn(record: Record, name: str, **changes: Any) -> None:
    """Draws from one of the targets, with all evidence."""
    make, options = TARGETS[name]
    asked: Table = {"draws": 120, "seed": 11} | options | changes
    draws = record.add(name, lambda: poe.sample(make(), **asked), _evidence)
    if draws is not None:
        for part in ("report", "method", "verdict", "plan", "warnings", "conditions"):
            said = getattr(draws, part)
            record.text(f"{name}/{part}", said() if callable(said) else said)


def draws() -> Table:
    """Draws by every route, with their evidence."""
    record = Record()
    for name in TARGETS:
        drawn(record, name)
    return record.table


SHARED = ("annealed in shards", "chains in shards", "texts")


def compiled() -> Table:
    """Chains whose steps are compiled."""
    record = Record()
    drawn(record, "chains", compile=True)
    return record.table


def parallel() -> Table:
    """Draws that two processes share out."""
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        out = Path(folder) / "shared.json"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *launch, __file__, "worker", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return json.loads(out.read_text())


def worker(out: Path) -> None:
    """What each process of `parallel` does; the first writes."""
    record = Record()
    for name in SHARED:
        drawn(record, name)
    if os.environ["RANK"] == "0":
        out.write_text(json.dumps(record.table))


# ---------------------------------------------------------------- files


def _sbi(kind: str) -> poe.Energy:
    """A network of sbi on simulations of a simple model, not trained."""
    from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn

    theta, observed = numbers(100, 2), t(0.5, -0.3, 0.2)
    x = torch.cat([theta, theta[:, :1] * theta[:, 1:]], 1) + 0.5 * numbers(100, 3, seed=1)
    build = {"posterior": posterior_nn, "likelihood": likelihood_nn, "ratio": classifier_nn}[kind]
    options = {} if kind == "ratio" else {"num_transforms": 1}
    estimator = build("mlp" if kind == "ratio" else "maf", hidden_features=4, **options)(theta, x)
    return poe.create(f"sbi-{kind}", estimator=estimator, context=observed)


def _sklearn(kind: str) -> poe.Energy:
    """An estimator of scikit-learn, fitted to three clusters."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KernelDensity

    data, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    data += 3 * np.eye(3)[labels][:, :2]
    if kind == "gaussian-mixture":
        return poe.create(kind, model=GaussianMixture(2, random_state=0).fit(data))
    if kind == "kernel-density":
        return poe.create(kind, model=KernelDensity(bandwidth=0.7).fit(data))
    return poe.create(kind, model=LogisticRegression().fit(data, labels), labels=1)


def _getdist() -> poe.Energy:
    import getdist

    names = {"names": ["a", "b"], "ranges": {"b": (0, None)}}
    with contextlib.redirect_stdout(io.StringIO()):
        chain = getdist.MCSamples(samples=np.abs(numbers(150, 2).double().numpy()), **names)
    small: Table = {"kind": "realnvp", "layers": 1, "hidden": 4, "copies": 1, "seed": 3}
    return poe.create("getdist", samples=chain, **small)


def _language_model() -> poe.Energy:
    import transformers

    sizes: Table = {"vocab_size": 4, "n_positions": 6, "n_embd": 4, "n_layer": 1, "n_head": 1}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=3)
    model = transformers.GPT2LMHeadModel(config)
    return as_energy(model, length=3, vocabulary=("<s>", "a", "b", "</s>"))


def _black_box(x: np.ndarray) -> np.ndarray:
    return -(x**2).sum(-1) / 2


def _jax(x: Any) -> Any:
    return -(x**2).sum() / 2


def _decoder() -> Any:
    return shaken(experts.Decoder((2, 2), latent=2, hidden=(4,)))


EXPERTS: dict[str, Make] = {
    "bernoulli": BITS["bits"],
    "beta": PLANE["beta"],
    "black-box": lambda: poe.create("black-box", log_prob=_black_box, event_shape=(2,)),
    "categorical": WORDS["sure"],
    "causal": lambda: experts.Causal(shaken(Recurrent(2)), (2, 2), 2, bos=2),
    "classifier": lambda: poe.create(
        "classifier", labels=[1], event_shape=(4, 4), classes=3, channels=(2, 2), hidden=2
    ),
    "conv-energy": lambda: shaken(experts.ConvEnergy((1, 4, 4), channels=(2, 2), hidden=2)),
    "dbm": BITS["dbm"],
    "decoder": lambda: Normal(torch.zeros(2, 2), 1.0) @ _decoder(),
    "denoiser": denoiser,
    "dirichlet": SHARES["dirichlet"],
    "discrete-made": BITS["made"],
    "discriminator": lambda: shaken(experts.Discriminator(event_shape=(2, 2), hidden=(4,))),
    "distribution": PLANE["student"],
    "exponential": PLANE["rate"],
    "fitted": lambda: shaken(poe.create("fitted", low=[0, None], high=[1, None], **SMALL), 0.1),
    "flow": PLANE["flow"],
    "function": PLANE["soft"],
    "gamma": PLANE["gamma"],
    "gan": lambda: shaken(experts.GAN((2, 2), latent=2, hidden=(4,), judge=(4,))),
    "gaussian-mixture": lambda: _sklearn("gaussian-mixture"),
    "gaussian-rbm": PLANE["boltzmann"],
    "generator": lambda: Normal(torch.zeros(2, 2), 1.0) @ experts.Generator(_decoder()),
    "getdist": _getdist,
    "ising": SPINS["ising"],
    "jax": lambda: poe.create("jax", log_prob=_jax, event_shape=(2,), bounded=True),
    "kernel-density": lambda: _sklearn("kernel-density"),
    "language-model": _language_model,
    "made": PLANE["order"],
    "neural": PLANE["neural"],
    "ngram": WORDS["text"],
    "noise-conditional": lambda: concepts("red", 0.5),
    "normal": PLANE["tilted"],
    "normflows": lambda: shaken(poe.create("normflows", kind="maf", blocks=1, **SMALL), 0.1),
    "pixelcnn": lambda: shaken(experts.PixelCNN((2, 2), channels=2, layers=2)),
    "poisson": BITS["counts"],
    "potts": WORDS["potts"],
    "rbm": BITS["rbm"],
    "sbi-likelihood": lambda: _sbi("likelihood"),
    "sbi-posterior": lambda: _sbi("posterior"),
    "sbi-ratio": lambda: _sbi("ratio"),
    "sklearn-classifier": lambda: _sklearn("sklearn-classifier"),
    "vae": lambda: shaken(experts.VAE((2, 2), latent=2, hidden=(4,), samples=4)),
    "von-mises": PLANE["angle"],
    "zuko": lambda: shaken(
        poe.create("zuko", kind="nsf", event_shape=(2,), transforms=1, hidden_features=(4,))
    ),
}


def _compositions() -> dict[str, Make]:
    """Compositions of every kind that a file can hold."""
    of = {e.name: e for e in pool("plane", F32)}
    a, b, c = of["n"], of["wide"], of["laplace"]
    part = (a & b) ** 0.5
    part.name = "pool"
    known, mask = t(0.1, 0.2, 0.3), torch.tensor([False, True, False])
    e = concepts()
    return {
        "algebra": lambda: (a & b) ** (1 / 3) - c / a,
        "weights": lambda: poe.mixture([a, b, of["student"]], weights=[1, 2, 4]),
        "contrast": lambda: poe.contrast(a, of["neural"], strength=0.1),
        "shift": lambda: poe.shift(of["order"], 0.1, log_z=poe.Estimate(0.125, 0.01)) | a,
        "on": lambda: poe.on(a, [2, 0], (3,)) & poe.on(of["gamma"], [0, 1], (3,)),
        "fill": lambda: normal(0.0, 1.0, 2.0) @ poe.fill(known, mask),
        "learned": lambda: a ** nn.Parameter(torch.tensor(0.7)) & c,
        "named part": lambda: (part | c) - part,
        "double": lambda: (PLANE["flow"]() & PLANE["beta"]()).double(),
        "combine": combined,
        "concepts": lambda: poe.conjunction(e, [e.given("red"), e.given("round")]),
    }


def saved(folder: Path, record: Record) -> Table:
    """Saves each registered expert and some compositions; what the files must give when loaded."""
    fixtures: Table = {}
    makes = dict.fromkeys(poe.available()) | EXPERTS
    makes |= {f"composition {name}": make for name, make in _compositions().items()}
    for name, make in makes.items():
        file = folder / f"{name.replace(' ', '-')}.safetensors"
        if make is None:
            record.table[name] = "not known to this script"
            continue
        e = record.add(f"{name}/built", make, lambda e: str(e))
        if not isinstance(e, poe.Energy):
            continue
        x = _some(e)
        record.add(f"{name}/energy", lambda e=e, x=x: e(x))
        record.add(f"{name}/facts", lambda e=e: {fact: getattr(e, fact) for fact in FACTS})
        record.add(f"{name}/recipe", lambda e=e, file=file: (poe.save(e, file), _recipe(file))[1])
        if not file.exists():
            continue
        again = record.add(f"{name}/loaded", lambda file=file: poe.load(file), lambda e: str(e))
        found = record.add(f"{name}/loaded/energy", lambda again=again, x=x: again(x).detach())
        if again is None or found is None:
            continue
        facts = {"expression": str(again), "log_z": again.log_z, "dtype": str(x.dtype)}
        fixtures[file.name] = plain(facts) | {"x": x.tolist(), "energy": found.tolist()}
    path = folder / "draws.safetensors"
    record.add("draws", lambda: poe.sample(combined(), 64, seed=0).save(path))
    kept = ("x", "log_z", "agreement")
    load = lambda: poe.Draws.load(path)  # noqa: E731
    again = record.add("draws/loaded", load, lambda d: plain([getattr(d, n) for n in kept]))
    if again is not None:
        fixtures[path.name] = {"x": again.x.tolist(), "log_z": plain(again.log_z)}
    return fixtures


def _some(e: Any) -> Tensor:
    """Three points for an expert: its draws where it has any."""
    g = torch.Generator().manual_seed(0)
    if hasattr(e, "sample"):
        with contextlib.suppress(TypeError, ValueError):
            return e.sample(3, generator=g).detach()
    if e.support.is_discrete:
        return torch.randint(2, (3, *e.event_shape), generator=g).to(e.dtype)
    return (0.25 + 0.1 * numbers(3, *e.event_shape)).to(e.dtype)


def _recipe(file: Path) -> dict[str, str]:
    with safetensors.safe_open(str(file), framework="pt") as opened:
        return opened.metadata()


def files() -> Table:
    """Files of registered experts and compositions: recipes, and energies after loading."""
    record = Record()
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        saved(Path(folder), record)
    return record.table


def fixtures(folder: Path) -> None:
    """Files that later versions must load, and `energies.json` with what they must then give."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = saved(folder, Record())
    (folder / "energies.json").write_text(json.dumps(expected, indent=1) + "\n")
    for file in sorted(folder.glob("*.safetensors")):
        print(f"{file.stat().st_size:8,}  {file.name}")


# ---------------------------------------------------------------- texts

BAD = """
a + b
a * 2
0.5 * a
a * b
-a
a ^ b
a // 2
a / 2
3 - a
a & 3
a ** b
a ** '2'
a ** float('inf')
a ** torch.tensor([1.0, 2.0])
a ** nn.Parameter(torch.ones(2))
a @ 3
a @ b
bool(a)
a and b
a & one
a | coin
shares | coin
poe.product(a, b)
poe.product([a, b], powers=[1.0])
poe.mixture([a, b], weights=[0, 0])
poe.mixture([a, circle], weights=[1, 1])
poe.contrast(a, b, strength=-1)
poe.combine(a, prior=b)
poe.combine([a, b], prior=gamma)
poe.conjunction(a, [b, b])
poe.on(a, [0.5], (2,))
poe.on(a, [0, 0], (3,))
poe.fill(torch.zeros(2), torch.tensor([True]))
poe.shift(a, float('inf'))
a(torch.zeros(5))
a.value_and_grad(torch.zeros(2, dtype=torch.long))
a.given(1)
setattr(a & b, 'name', 'a b')
poe.sample(a & b, -1)
poe.sample(a & b, shards=5, chains=4)
poe.sample(a & b, seed='x')
poe.sample(a & circle, method='annealed', warmup=5)
poe.sample(a & circle, init=torch.zeros(2))
poe.sample(a & circle, kernel='langevin')
poe.sample(a & circle, kernel=poe.Gibbs())
poe.sample(a & circle, checkpoint='run')
poe.sample(a & circle, method='gibs')
poe.sample(a & circle, method='exact')
poe.sample(circle, method='importance')
poe.sample(a & b, device='gpu')
poe.sample(~a)
poe.sample(left & right)
poe.sample(nowhere, 10)
poe.sample(a & nanny, 10, seed=0)
poe.plan(3)
poe.log_z(~a)
poe.log_z(a & circle, method='magic')
poe.log_z(a & circle, draws=3)
poe.log_z(a & circle, proposal=circle)
poe.normalize(a, log_z=3)
poe.bracket(circle, torch.zeros(3, 2))
poe.mode(~a, seed=0)
poe.stein_test(coin, torch.zeros(9, 2))
poe.anomaly_score(torch.zeros(2), a, one)
poe.as_energy(3)
poe.as_energy(ring)
poe.as_energy(lambda x: x, event_shape=(2,))(torch.zeros(3, 2))
poe.create('norml')
poe.create('normal', loc=0.0, scale=-1.0)
poe.register('normal')(Halve)
poe.load('digits.evn')
poe.load('pickle.pt')
poe.load('foreign.safetensors')
poe.load('cut.safetensors')
poe.load('changed.safetensors')
poe.load('draws.safetensors')
poe.Draws.load('a.safetensors')
poe.save(circle, 'never.safetensors')
poe.save(a @ twist, 'never.safetensors')
poe.parse('a & nobody', names)
poe.parse('a + b', names)
poe.parse('__import__("os")', names)
poe.fit_density(torch.zeros(9, 2))
poe.Langevin(-1.0)
poe.Gibbs('sideways')
poe.Tempered(a, torch.tensor([0.5, 1.0]))
poe.IndependentMetropolis(circle)
poe.testing.check_expert(lambda: wrong)
experts.Normal(0.0)
experts.Bernoulli(1.5)
experts.Ising((2, 2), edges=[(0, 9)])
experts.RBM(torch.zeros(3))
"""
COMMANDS = """
--help
show --help
sample --help
check --help
experts --json
show a&b --expert a=a.safetensors --expert b=b.safetensors
show a&b --expert a=a.safetensors --expert b=b.safetensors --json
show digits.even&digits.high --json
sample a&b --expert a=a.safetensors --expert b=b.safetensors -n 50 --json
sample a-b --expert a=a.safetensors --expert b=b.safetensors -n 50 --method chains --json
sample a|b --expert a=a.safetensors --expert b=b.safetensors -n 50
logz a&b --expert a=a.safetensors --expert b=b.safetensors --json
logz a-b --expert a=a.safetensors --expert b=b.safetensors -n 64 --json
check own:make -n 500 --json
check own:broken --json
show a&nobody --json
show a&&b --expert a=a.safetensors --expert b=b.safetensors --json
show a --expert a=cut.safetensors --json
sample ~a --expert a=a.safetensors --json
sample a --expert a=a.safetensors --method gibs
sample a --expert a=a.safetensors --out x.txt
nonsense
"""
OWN = """
import experts, torch
def make(): return experts.Normal(torch.zeros(2), torch.ones(2))
def broken(): raise RuntimeError("no")
"""


class Wrong(poe.Energy):
    """An energy that returns the wrong shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _names() -> Table:
    """What the bad calls speak of."""
    made_of = lambda f, name: as_energy(f, event_shape=(2,), name=name)  # noqa: E731
    found: Table = {
        "a": normal(0.0, 0.0, name="a"),
        "b": normal(1.0, 1.0, name="b"),
        "one": normal(0.0, name="one"),
        "coin": as_energy(td.Bernoulli(t(0.3, 0.6))),
        "shares": as_energy(td.Dirichlet(torch.ones(2))),
        "circle": made_of(ring, "circle"),
        "nowhere": made_of(lambda x: x.sum(-1) * math.inf, "nowhere"),
        "nanny": made_of(lambda x: x.sum(-1) * math.nan, "nanny"),
        "gamma": PLANE["gamma"](),
        "wrong": Wrong((2,), name="wrong"),
        "left": as_energy(td.Uniform(t(0.0), t(1.0))),
        "right": as_energy(td.Uniform(t(2.0), t(3.0))),
    }
    return found | {"names": {"a": found["a"], "b": found["b"]}}


def _command(line: str) -> tuple[int, str, str]:
    """The exit status of `python -m poe`, and what it writes."""
    out, err, status = io.StringIO(), io.StringIO(), None
    argv, path = sys.argv, list(sys.path)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = ["poe", *line.split()]
            runpy.run_module("poe", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.argv, sys.path[:] = argv, path
    return int(status or 0), out.getvalue(), err.getvalue()


def _figures(value: Any) -> Any:
    """The numbers of a report in JSON: without its texts, seconds and sizes of files."""
    if isinstance(value, dict):
        inner = {k: _figures(part) for k, part in value.items() if k not in ("seconds", "bytes")}
        return {key: part for key, part in inner.items() if part is not None}
    if isinstance(value, list):
        return [_figures(part) for part in value]
    return None if isinstance(value, str) else value


def texts() -> Table:
    """Refusals of bad calls, and what the command line writes."""
    record, here = Record(), Path.cwd()
    importlib.import_module("poe.testing")
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        os.chdir(folder)
        try:
            names = _names()
            for name in "ab":
                poe.save(names[name], f"{name}.safetensors")
            content = Path("a.safetensors").read_bytes()
            Path("cut.safetensors").write_bytes(content[:-3])
            Path("changed.safetensors").write_bytes(content[:-3] + b"abc")
            Path("own.py").write_text(OWN)
            torch.save({"w": torch.ones(2)}, "pickle.pt")
            first_of("save_file", "safetensors.torch")({"w": torch.ones(2)}, "foreign.safetensors")
            poe.sample(names["a"], 5, seed=0).save("draws.safetensors")
            for call in BAD.strip().splitlines():
                bad = lambda call=call: eval(call, globals() | names)  # noqa: E731
                record.add(f"call/{call}", bad, lambda _: "no error")
            for line in COMMANDS.strip().splitlines():
                status, out, err = _command(line)
                report = json.loads(out) if out.startswith("{") else None
                out = re.sub(r'"seconds": [0-9.e-]+', '"seconds": null', out)
                record.table[f"command/{line}"] = [status, _figures(report)]
                record.text(f"command/{line}/out", out)
                record.text(f"command/{line}/err", err)
        finally:
            os.chdir(here)
    return record.table


# ---------------------------------------------------------------- the command line

SECTIONS: dict[str, Callable[[], Table]] = {
    **{f.__name__: f for f in (expressions, plans, estimates, kernels, training, draws)},
    **{f.__name__: f for f in (files, texts, parallel, compiled)},
}
USUAL = [name for name in SECTIONS if name not in ("parallel", "compiled")]


def recorded(names: list[str]) -> dict[str, Table]:
    """The sections of these names; says what each took, in seconds of the processor."""
    found = {}
    for name in names:
        used = time.process_time()
        try:
            found[name] = SECTIONS[name]()
        except Exception:
            print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr)
            found[name] = {"failed": True}
        seconds = time.process_time() - used
        print(f"{name}: {len(found[name])} entries, {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def apart(old: Any, new: Any) -> str | None:
    """The largest relative difference of the numbers in two values; None for different forms."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        pairs = [(old[key], new[key]) for key in old if key != "sha256"]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = list(zip(old, new, strict=True))
    elif isinstance(old, int | float) and isinstance(new, int | float):
        same = old == new or (old != old and new != new)
        return "0" if same else f"{abs(old - new) / max(abs(old), abs(new)):.2g}"
    else:
        return "0" if old == new else None
    parts = [apart(*pair) for pair in pairs]
    return None if None in parts else max(parts, key=lambda part: float(part or 0), default="0")


def compare(old: dict[str, Table], new: dict[str, Table], *, with_texts: bool) -> int:
    """Prints every difference and counts them by section; the exit status."""
    failed, lines = False, []
    for section, table in new.items():
        was, counts = old.get(section, {}), {kind: [0, 0] for kind in ("values", "texts")}
        for key in dict.fromkeys([*was, *table]):
            count = counts["texts" if key.startswith(TEXT) else "values"]
            count[0] += 1
            before, after = (written(t[key]) if key in t else "absent" for t in (was, table))
            if before == after:
                continue
            count[1] += 1
            far = apart(was[key], table[key]) if key in was and key in table else None
            how = "" if far is None else f" (largest relative difference of kept numbers {far})"
            print(f"{section}  {key}{how}\n  old  {before[:400]}\n  new  {after[:400]}")
        failed |= counts["values"][1] > 0 or (with_texts and counts["texts"][1] > 0)
        said = "; ".join(
            f"{differ} of {total} {kind} differ" for kind, (total, differ) in counts.items()
        )
        lines.append(f"{section}: {said}")
    print("\n".join(lines))
    return int(failed)


def main() -> int:
    """Writes, compares or makes fixtures; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("write", "compare", "fixtures", "worker"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--texts", action="store_true", help="texts count for the exit status")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command in ("fixtures", "worker"):
        {"fixtures": fixtures, "worker": worker}[arguments.command](arguments.path)
        return 0
    print(f"poe of {Path(poe.__file__).parent}, torch {torch.__version__}", file=sys.stderr)
    old = json.loads(arguments.path.read_text()) if arguments.path.exists() else {}
    if arguments.command == "write":
        new = old | recorded(arguments.only or USUAL)
        tables = []
        for name, table in new.items():
            rows = ",\n".join(f"{json.dumps(key)}: {written(v)}" for key, v in table.items())
            tables.append(f"{json.dumps(name)}: {{\n{rows}\n}}")
        arguments.path.write_text("{\n" + ",\n".join(tables) + "\n}\n")
        return 0
    names = arguments.only or [name for name in SECTIONS if name in old]
    return compare(old, recorded(names), with_texts=arguments.texts)


if __name__ == "__main__":
    sys.exit(main())
