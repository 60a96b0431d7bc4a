r"""Experts with latent variables: variational autoencoders, whose energy is a bound, and generators
with their discriminator.

Both draw pictures by the same map, `Generator`: with u = (z, ε) standard normal over R^(m + n),

    x = g(u) = mean(z) + scale ∘ ε,        p_g(x) = ∫ N(z; 0, 1) N(x; mean(z), diag(scale²)) dz,

mean a network (`Decoder`), scale one positive number a pixel. So an energy on pictures is one on u,
`energy @ model.generator`, and

    model.prior & energy @ model.generator        has pictures g(u) with the density p_g(x)
    exp(-E(x)) / Z,

exactly, whatever the network: a constraint or a classifier on what a generator draws, with no
density of it needed.

| expert | on | energy in nats | draws |
|-----------------|----------|-------------------------------------------------------------|----------------------------------|
| `VAE` | pictures | -log 1/K Σₖ p(x, zₖ)/q(zₖ|x): bounds -log p_g(x) | exact, by the decoder |
| `GAN` | u | ½‖u‖² - logit D(g(u)) + const | from N(0, 1), weighed |
| `Discriminator` | pictures | -logit D(x): p_data / p_g where D is optimal | none: a factor |

References: Kingma & Welling 2014, ICLR (VAE); Burda, Grosse & Salakhutdinov 2016, ICLR
(importance-weighted bound); Nowozin 2018, ICLR (jackknife of it); Goodfellow et al. 2014, NeurIPS
(GAN); Che et al. 2020, NeurIPS (drawing in the latent space of a GAN).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from experts.families import Normal
from poe.algebra.energy import Energy, Estimate
from poe.registry import register

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
ROWS = 1 << 16  # latent points that are decoded at once where no gradient is asked for


class PerPoint(NamedTuple):
    """A number of each x with its standard error, both (*batch), in nats."""

    value: Tensor
    standard_error: Tensor


@register("decoder")
class Decoder(nn.Module):
    """mean(z), a multilayer perceptron from (*batch, latent) to (*batch, *picture), and `scale`
    (*picture), units of x.

    With an `amplitude` a, mean = a·tanh(f / a) of the perceptron f. `energy @ decoder` is an energy
    on z: of pictures without noise.
    """

    def __init__(
        self,
        picture_shape: Sequence[int],
        *,
        latent: int,
        hidden: Sequence[int],
        scale: float = 1.0,
        amplitude: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if latent < 1 or not 0 < scale < math.inf:
            raise ValueError(
                f"a decoder needs latent >= 1 and a finite scale > 0, not latent={latent}, "
                f"scale={scale}"
            )
        self.arguments = {
            "picture_shape": list(picture_shape),
            "latent": latent,
            "hidden": list(hidden),
            "scale": scale,
            "amplitude": amplitude,
            "dropout": dropout,
        }
        self.amplitude = amplitude
        self.event_shape, self.picture_shape = torch.Size([latent]), torch.Size(picture_shape)
        n = self.picture_shape.numel()
        self.network = perceptron([latent, *hidden, n], dropout)
        self.log_scale = nn.Parameter(torch.full((n,), math.log(scale)))

    @property
    def scale(self) -> Tensor:  # (*picture)
        """Standard deviation of the noise of each pixel."""
        return self.log_scale.exp().reshape(self.picture_shape)

    def forward(self, z: Tensor) -> Tensor:  # (*batch, latent) -> (*batch, *picture)
        mean = self.network(z)
        if self.amplitude is not None:
            mean = self.amplitude * torch.tanh(mean / self.amplitude)
        return mean.reshape(*z.shape[:-1], *self.picture_shape)

    def config(self) -> dict[str, Any]:
        """Plain arguments of another one of this shape."""
        return self.arguments

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """A decoder of these arguments, to be filled."""
        return cls(**config)


@register("generator")
class Generator(nn.Module):
    """g(u) = mean(z) + scale ∘ ε, u = (z, ε): (*batch, latent + pixels) -> (*batch, *picture).

    `decoder` is a `Decoder`, shared by all that draw with it, or the arguments of one.
    """

    def __init__(self, decoder: Decoder | dict[str, Any]) -> None:
        super().__init__()
        self.decoder = decoder if isinstance(decoder, Decoder) else Decoder(**decoder)
        self.event_shape = torch.Size(
            [self.decoder.event_shape.numel() + self.decoder.picture_shape.numel()]
        )

    def forward(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch, *picture)
        latent = self.decoder.event_shape.numel()
        noise = u[..., latent:].reshape(*u.shape[:-1], *self.decoder.picture_shape)
        return self.decoder(u[..., :latent]) + self.decoder.scale * noise

    def config(self) -> dict[str, Any]:
        """Plain arguments of another one of this shape."""
        return {"decoder": self.decoder.config()}

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """A generator of these arguments, to be filled."""
        return cls(**config)


class Locked(Energy):
    """An energy of networks that stays in eval mode, whatever a parent does, so that dropout never
    makes it random."""

    def __init__(self, event_shape: Sequence[int], name: str | None) -> None:
        super().__init__(event_shape, name=name)
        self._unlocked = False

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[Self]:
        """Inside, dropout is on; after, the energy is in eval mode again."""
        self._unlocked = True
        try:
            yield self.train()
        finally:
            self._unlocked = False
            self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, but inside `training_mode`."""
        return super().train(mode and self._unlocked)


class Latent(Locked):
    """What experts with a decoder share: a standard normal `prior` of u, and the `generator`."""

    def __init__(self, event_shape: Sequence[int], decoder: Decoder, name: str | None) -> None:
        super().__init__(event_shape, name)
        self.decoder = decoder
        size = decoder.event_shape.numel() + decoder.picture_shape.numel()
        self.prior = Normal(torch.zeros(size), torch.ones(size))

    @property
    def generator(self) -> Generator:
        """The map from u to pictures, over the decoder of this expert: one object as long as that
        stays the same."""
        held: Generator | None = vars(self).get(
            "_generator"
        )  # beside the submodules, whose state it would repeat
        if held is None or held.decoder is not self.decoder:
            vars(self)["_generator"] = held = Generator(self.decoder)
        return held

    def decode(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch, *picture)
        """g(u), the pictures of these draws, without a graph."""
        with torch.no_grad():
            return self.generator(u)


@register("vae")
class VAE(Latent):
    """E(x) = -log 1/K Σₖ wₖ(x),  wₖ = p(x, zₖ) / q(zₖ | x),  zₖ = m(x) + L(x) εₖ,  the K normal
    vectors εₖ held fixed.

    The encoder gives the mean m and the lower triangular L of q(z | x) = N(m, L Lᵀ). E is a
    function of x, the same at each call. Over the choice of ε the mean of exp(-E(x)) is p(x), so by
    Jensen's inequality E(x) >= -log p(x) in expectation: `bound` is True. `gap(x)` estimates E(x) +
    log p(x). Draws are exact for the model p, not for exp(-E); where the VAE is both the start and
    a factor of a target, its bound cancels in the importance weights. Where the bound matters,
    `prior & energy @ generator` has none.

    `log_z` is unknown until `measure_log_z` has estimated it: over the choice of ε the mean of Z is
    1.

    Arguments:
        event_shape: shape of one x.
        latent: numbers in z.
        hidden: widths of the decoder's hidden layers, and in reverse order the encoder's.
        samples: K. The cost of one energy is that of K decodings.
        scale: of the decoder's noise at first, in units of x; one number a pixel is learned.
        amplitude: bound on the decoder's means, in units of x, or None.
        dropout: of hidden units, in training mode.
        log_z: (value, standard error) where it has been measured.
        name: how it prints.
    """

    noise: Tensor
    bound = True

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent: int = 8,
        hidden: Sequence[int] = (128,),
        samples: int = 16,
        scale: float = 1.0,
        amplitude: float | None = None,
        dropout: float = 0.0,
        log_z: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        if samples < 1:
            raise ValueError(
                "samples is the number of points of z that the bound averages over, at least 1, "
                f"not {samples}"
            )
        shape: dict[str, Any] = {
            "latent": latent,
            "hidden": list(hidden),
            "scale": scale,
            "amplitude": amplitude,
            "dropout": dropout,
        }
        super().__init__(event_shape, Decoder(event_shape, **shape), name)
        self._config = {"event_shape": list(event_shape), "samples": samples, **shape}
        self._log_z = None if log_z is None else Estimate(*log_z)
        self.encoder = perceptron(
            [self.event_shape.numel(), *reversed(hidden), latent + latent * (latent + 1) // 2],
            dropout,
        )
        fixed = torch.randn(samples, latent, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", fixed)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return math.log(len(self.noise)) - self.log_weights(x, self.noise).logsumexp(-1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, latent), (*batch, latent, latent)
        """m(x) and L(x) of q(z | x), the diagonal of L positive."""
        m = self.noise.shape[-1]
        found = self.encoder(
            x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.event_shape.numel())
        )
        row, column = torch.tril_indices(m, m, device=x.device)
        entries = torch.where(
            row == column,
            nn.functional.softplus(found[..., m:] + 0.55) + 1e-3,
            0.3 * found[..., m:],
        )
        factor = entries.new_zeros(*entries.shape[:-1], m * m).index_copy(
            -1, row * m + column, entries
        )
        return found[..., :m], factor.unflatten(-1, (m, m))

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        # (*batch, *event), (K, latent) -> (*batch, K)
        """log p(x, zₖ) - log q(zₖ | x) in nats, zₖ = m(x) + L(x) εₖ; ε may also differ from x to x,
        (*batch, K, latent)."""
        mean, factor = self.posterior(x)
        z = mean.unsqueeze(-2) + noise @ factor.mT
        log_q = -0.5 * noise.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(
            -1, keepdim=True
        )
        return self._log_joint(x, z) - log_q + HALF_LOG_2PI * z.shape[-1]

    def _log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        # (*batch, *event), (*batch, K, latent) -> (*batch, K)
        """log p(x, z) in nats."""
        k = len(self.event_shape)
        residual = (x.unsqueeze(-1 - k) - self.decoder(z)) / self.decoder.scale
        squares = residual.flatten(-k).square().sum(-1) if k else residual.square()
        n = self.event_shape.numel() + z.shape[-1]
        return (
            -0.5 * (squares + z.square().sum(-1)) - self.decoder.log_scale.sum() - HALF_LOG_2PI * n
        )

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent draws of the model p, (n, *event): z from the prior, x from the decoder."""
        return self.decode(self.prior.sample(n, generator=generator))

    @torch.no_grad()
    def evidence(
        self, x: Tensor, *, samples: int = 4096, generator: torch.Generator | None = None
    ) -> PerPoint:
        """log p(x) of the model with its standard error, both (*batch), from `samples` fresh points
        of z for each x.

        With v the mean of K weights and v₋ₖ that of all but the k-th, the jackknife estimate is K
        log v - (K - 1) mean log v₋ₖ, whose bias falls as 1/K² where that of log v falls as 1/K; it
        is +inf where one weight exceeds the others beyond rounding. The standard error is that of
        log v by the delta method.
        """
        if samples < 2:
            raise ValueError(
                f"the evidence is estimated from two points of z or more, not {samples}"
            )
        batch = x.shape[: x.ndim - len(self.event_shape)]
        rows, logs = x.reshape(-1, *self.event_shape), []
        for chunk in rows.split(max(1, ROWS // samples)):
            shape = (len(chunk), samples, self.noise.shape[-1])
            logs.append(
                self.log_weights(
                    chunk, torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
                ).double()
            )
        log_w = torch.cat(logs) if logs else rows.new_empty(0, samples, dtype=torch.float64)
        total = log_w.logsumexp(-1, keepdim=True)
        share = (log_w - total).exp()
        rest = torch.log1p(-share).mean(-1)  # log Σ without the k-th, less log Σ
        value = (
            total.squeeze(-1)
            - math.log(samples)
            - (samples - 1) * (rest + math.log(samples / (samples - 1)))
        )
        error = (share.square().sum(-1) - 1 / samples).clamp(min=0).sqrt()
        return PerPoint(value.reshape(batch).to(x), error.reshape(batch).to(x))

    @torch.no_grad()
    def gap(
        self, x: Tensor, *, samples: int = 4096, generator: torch.Generator | None = None
    ) -> PerPoint:
        """E(x) + log p(x), what the bound loses at each x, in nats: E against the `evidence` by
        many more points of z.

        It is positive in expectation over the fixed vectors ε; at one x they may have been lucky
        and the gap negative.
        """
        value, error = self.evidence(x, samples=samples, generator=generator)
        return PerPoint(value + self(x), error)

    @torch.no_grad()
    def measure_log_z(
        self, draws: int = 20_000, *, generator: torch.Generator | None = None
    ) -> Estimate:
        """log of Z = ∫ exp(-E(x)) dx, estimated from exact draws and kept as `log_z` until the next
        `training_mode`.

        With (x, z) drawn from the model, E[q(z | x) / p(x, z) | x] = 1/p(x); hence Z = E[exp(-E(x))
        q(z | x) / p(x, z)], unbiased.
        """
        if draws < 2:
            raise ValueError(f"Z is estimated from two draws or more, not {draws}")
        logs, most = [], max(1, ROWS // len(self.noise))
        for first in range(0, draws, most):
            u = self.prior.sample(min(most, draws - first), generator=generator)
            x, z = self.decode(u), u[..., : self.noise.shape[-1]]
            mean, factor = self.posterior(x)
            back = torch.linalg.solve_triangular(
                factor, (z - mean).unsqueeze(-1), upper=False
            ).squeeze(-1)
            logs.append(-self(x) - self.log_weights(x, back.unsqueeze(-2)).squeeze(-1))
        log_w = torch.cat(logs).double()
        share = log_w.softmax(0)
        error = math.sqrt(float((share - 1 / len(share)).square().sum()))
        self._log_z = Estimate(float(log_w.logsumexp(0)) - math.log(len(log_w)), error)
        return self._log_z

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[Self]:
        """Inside, dropout is on, and what was measured of Z is forgotten; after, the expert is in
        eval mode again."""
        self._log_z = None
        with super().training_mode() as inside:
            yield inside

    @property
    def log_z(self) -> Estimate | None:
        return self._log_z

    @property
    def proper(self) -> bool | None:
        # networks grow at most linearly, so -log p(x, z) >= c‖x‖² - d for all z, and log|L(x)|
        # grows like log‖x‖
        return True

    @property
    def bounded(self) -> bool | None:
        return True

    def __repr__(self) -> str:
        said = (
            f"  bound        E(x) >= -log p(x), on average over {len(self.noise)} fixed points "
            "of z; gap(x) estimates by how much"
        )
        first, *rest = super().__repr__().splitlines()
        return "\n".join([first, said, *rest])

    def config(self) -> dict[str, Any]:
        return self._config | {"log_z": None if self._log_z is None else list(self._log_z)}


@register("discriminator")
class Discriminator(Locked):
    """E(x) = -logit D(x), logit D = limit·tanh(f(x) / limit), f a network: a factor that is large
    where D takes x for data.

    Where D is optimal, exp(-E) = p_data / p_g. It says nothing of where p_g is: multiply it by what
    has mass there. With |E| <= limit it is bounded and improper, and leaves a proper factor proper.

    Arguments:
        network: takes (n, pixels) and returns f, (n, 1); None builds a multilayer perceptron of
            widths `hidden`.
        event_shape: shape of one x.
        hidden, dropout: of the network that is built.
        limit: bound on |logit D| in nats.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        event_shape: Sequence[int],
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        limit: float = 20.0,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, name)
        if not 0 < limit < math.inf:
            raise ValueError(f"limit bounds |logit D| in nats: a finite number > 0, not {limit}")
        self._config = {
            "event_shape": list(event_shape),
            "hidden": list(hidden),
            "dropout": dropout,
            "limit": limit,
        }
        self.limit, self._own = limit, network is None
        self.network = (
            perceptron([self.event_shape.numel(), *hidden, 1], dropout)
            if network is None
            else network
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self.logit(x)

    def logit(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log D(x) / (1 - D(x))."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        found = self.network(x.reshape(math.prod(batch), self.event_shape.numel()))
        if found.numel() != math.prod(batch):
            raise ValueError(
                f"the network of {self} gives one number for each x, (n, 1), and not "
                f"{tuple(found.shape)}"
            )
        found = found.reshape(batch)
        return self.limit * torch.tanh(found / self.limit)

    @property
    def proper(self) -> bool | None:
        return False  # exp(-E) >= exp(-limit) on all of R^n

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def growth(self) -> float | None:
        return 0.0

    def config(self) -> dict[str, Any]:
        if not self._own:
            raise TypeError(
                f"{self} wraps a network object, which no file describes: store its weights, and "
                "wrap it again after loading them"
            )
        return self._config


@register("gan")
class GAN(Latent):
    """E(u) = ½‖u‖² + n/2 log 2π - logit D(g(u)) over u in R^n: what the generator draws, corrected
    by its discriminator.

    Where D is optimal for g, pictures g(u) of draws u follow the data as far as p_g reaches, and Z
    is 1: `poe.log_z` close to 0 says that the discriminator is calibrated. The prior alone draws
    without D; `discriminator` is the factor on pictures; and conditions on the picture stand beside
    both, `gan & judge @ gan.generator`. `decode(draws.x)` gives the pictures.

    Arguments:
        picture_shape: shape of one picture.
        latent: numbers in z; events have latent + pixels numbers, the rest being the noise of the
            pixels.
        hidden: widths of the decoder's hidden layers.
        scale: of the noise of the pixels, in units of x; it is not learned.
        amplitude: bound on the means of the pixels, in units of x, or None.
        judge: widths of the discriminator's hidden layers.
        dropout: of the discriminator's hidden units, in training mode.
        limit: bound on |logit D| in nats, so that E is proper whatever D.
        name: how it prints.
    """

    def __init__(
        self,
        picture_shape: Sequence[int],
        *,
        latent: int = 16,
        hidden: Sequence[int] = (128, 128),
        scale: float = 0.2,
        amplitude: float | None = None,
        judge: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        limit: float = 20.0,
        name: str | None = None,
    ) -> None:
        decoder = Decoder(
            picture_shape, latent=latent, hidden=hidden, scale=scale, amplitude=amplitude
        )
        decoder.log_scale.requires_grad_(False)
        super().__init__([latent + decoder.picture_shape.numel()], decoder, name)
        self._config = {
            "picture_shape": list(picture_shape),
            "latent": latent,
            "hidden": list(hidden),
            "scale": scale,
            "amplitude": amplitude,
            "judge": list(judge),
            "dropout": dropout,
            "limit": limit,
        }
        self.discriminator = Discriminator(
            event_shape=picture_shape, hidden=judge, dropout=dropout, limit=limit
        )
        self.eval()

    def forward(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch)
        return self.prior(u) + self.discriminator(self.generator(u))

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[Self]:
        """Inside, dropout is on in the discriminator; after, both are in eval mode again."""
        with self.discriminator.training_mode(), super().training_mode() as inside:
            yield inside

    def proposal(self) -> Energy:
        """The prior: what the generator draws without its discriminator, from which importance
        sampling starts."""
        return self.prior

    @property
    def latent(self) -> GAN:
        """This energy itself, beside `discriminator`, which is on pictures."""
        return self

    @property
    def proper(self) -> bool | None:
        return True  # exp(-limit) <= Z <= exp(limit)

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def growth(self) -> float | None:
        return 0.5

    def config(self) -> dict[str, Any]:
        return self._config


def perceptron(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these widths with SiLU between them, and dropout after it where there is
    any."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Linear(inputs, outputs),
            nn.SiLU(),
            *([nn.Dropout(dropout)] if dropout else []),
        ]
    return nn.Sequential(*layers[: 2 * (len(widths) - 1) - 1] if not dropout else layers[:-2])
