"""What an energy can do, as small protocols.

A method of drawing never asks what class an energy is; it asks `energy.can(Samples)`. An expert
answers by having the methods of the protocol; a composition answers from its parts. A third-party
expert therefore gets every method of this library by implementing the right protocol.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Capability = TypeVar("Capability")


def as_a(energy: Any, capability: type[Capability]) -> Capability | None:
    """The energy, typed by a capability that it has; None where it lacks it."""
    return energy if energy.can(capability) else None


@runtime_checkable
class Samples(Protocol):
    """Exact, independent draws: `sample(n) -> (n, *event)`; n is an int or a shape."""

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor: ...


@runtime_checkable
class Transport(Protocol):
    """A bijection to standard normal noise of the same event shape (normalizing flows).

    `to_noise(x) -> (z, log|det dz/dx|)` and `from_noise(z) -> (x, log|det dx/dz|)`, determinants in
    nats, of shape (*batch).
    """

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def from_noise(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class CountsPasses(Protocol):
    """A Transport that says how many passes of its network `from_noise` takes; 1 is assumed of
    others."""

    passes: int


@runtime_checkable
class Sequential(Protocol):
    """A density that factorises along `order`, one position at a time (autoregressive models).

    `next_logits(prefix)` takes the values at the first t positions of `order`, (*batch, t), and
    describes the
    conditional density of the next one: (*batch, categories) normalised log-probabilities for a
    discrete expert; the parameters of the conditional, documented by the expert, for a continuous
    one.
    """

    order: Tensor

    def next_logits(self, prefix: Tensor) -> Tensor: ...


@runtime_checkable
class BlockGibbs(Protocol):
    """Blocks of coordinates whose conditional given all others can be drawn exactly.

    `blocks` lists index tensors into the flattened event; `sample_block(x, block, uniforms)`
    returns x with that block redrawn from the given uniforms (*batch, len(block)), so that a step
    is a pure function of its noise.
    """

    blocks: tuple[Tensor, ...]

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor: ...


@runtime_checkable
class SiteLogits(Protocol):
    """A discrete energy whose single sites, each given all others, have closed conditionals.

    `site_logits(x, sites)` takes index tensors into the flattened event and returns, in nats,
    log-odds of the upper of two values, (*batch, len(sites)), or log weights of the values in
    rising order up to a constant, (*batch, len(sites), values). `blocks` is a partition of the
    sites into sets that are independent given all others. Unlike draws, logits add up in a product
    of experts.
    """

    blocks: tuple[Tensor, ...]

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor: ...


@runtime_checkable
class Hidden(Protocol):
    """A discrete energy that sums over hidden units, given which its sites are independent
    (restricted Boltzmann machines).

    `draw_hidden(x, uniforms)` draws them given x, from uniforms (*batch, hidden); `site_logits(h,
    sites)` is as in `SiteLogits`, but given the hidden units.
    """

    hidden: int
    blocks: tuple[Tensor, ...]

    def draw_hidden(self, x: Tensor, uniforms: Tensor) -> Tensor: ...

    def site_logits(self, h: Tensor, sites: Tensor) -> Tensor: ...


@runtime_checkable
class Augmented(Protocol):
    """A discrete energy that is the sum over hidden units of another: `joint` is that one, over one
    vector (n + hidden), x first."""

    joint: Any


@runtime_checkable
class TakesUniforms(Protocol):
    """A BlockGibbs that takes more numbers than coordinates for a block, through hidden units say:
    `uniforms[i]` for block i."""

    uniforms: tuple[int, ...]


@runtime_checkable
class Watched(Protocol):
    """The same energy as `watched`, and nothing but that: what it can do, this can."""

    watched: Any


@runtime_checkable
class Conditional(Protocol):
    """Takes a context: `given(context)` binds it and returns an unconditional energy."""

    takes_context: bool


@runtime_checkable
class NoiseConditional(Protocol):
    """An energy with noise levels (in units of x): `at(sigma)` returns the energy at that level,
    `at(0)` the target's."""

    sigma_range: tuple[float, float]


@runtime_checkable
class ScoreOnly(Protocol):
    """An expert with a score and no energy: calling it raises TypeError, and `value_and_grad` has
    NaN for the value. So does a product with it, while a mixture or contrast, whose gradient
    depends on values, has NaN for that too. `poe.LineIntegral` moves on it."""

    score_only: bool


@runtime_checkable
class Counts(Protocol):
    """Counts evaluations: `count(steps, kernel)` adds those that a kernel made past it, each step
    at its fixed cost."""

    def count(self, steps: int, kernel: Any) -> None: ...


@runtime_checkable
class SharesNetwork(Protocol):
    """One of several energies on one `network`, which evaluate together: terms of a product or
    mixture are passed to one of them.

    `fused(energies, x) -> (k, *batch)` in nats, with its graph; `fused_value_and_grad(energies, x)`
    adds the gradients, (k, *batch, *event), without one. Both bound what they hold in memory.
    """

    network: Any

    def fused(self, energies: Any, x: Tensor) -> Tensor: ...

    def fused_value_and_grad(self, energies: Any, x: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Guided(Protocol):
    """A noise-conditional expert whose energies are too inaccurate for the weights of reverse
    diffusion (`poe.smc.diffusion`): `guidance(target)` is how particles go down the levels of noise
    of a composition with it; None where its energies serve."""

    def guidance(self, target: Any) -> Guidance | None: ...


class Guidance(Protocol):
    """Reverse diffusion of one composition.

    `level(sigma)` is the composition at a level, in the form of `poe.smc.noise_path.PlainLevel`.
    `follows_scores`: whether gradients above the target are minus scores that differ from the
    gradients of the energies, so that Metropolis moves do not apply. Then Z is measured in units of
    that of `reference`, an energy at the noisiest level; else that is None.
    """

    follows_scores: bool

    @property
    def reference(self) -> Any: ...

    def level(self, sigma: float) -> Any: ...


@runtime_checkable
class Enumerates(Protocol):
    """A small discrete space: `enumerate() -> (states, *event)`, every point of the support
    once."""

    def enumerate(self) -> Tensor: ...


@runtime_checkable
class Proposes(Protocol):
    """Has a normalised density near to it that draws exactly: where importance sampling of an
    unnormalised energy starts."""

    def proposal(self) -> Any: ...


@runtime_checkable
class Moments(Protocol):
    """Knows its first moments exactly: `moments() -> (mean (n), covariance (n, n))` of the
    flattened event."""

    def moments(self) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class BoundsLogProb(Protocol):
    """Its energy bounds -log p of its own density from above: `gap(x) -> (value, standard_error)`
    is E(x) + log p(x), in nats. Its draws follow p, not exp(-E)."""

    def gap(self, x: Tensor) -> Any: ...


def quick(energy: Any) -> bool:
    """Whether an energy gives x from noise in one pass, so that moving in its noise costs little
    more than moving in x."""
    return energy.can(Transport) and (not energy.can(CountsPasses) or energy.passes == 1)
