"""Variational autoencoders, whose energy is a bound."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from experts.latent.decoder import Decoder, Latent, perceptron
from poe.algebra.energy import Estimate
from poe.registry import register

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
MAX_DECODED = 1 << 16  # latent points in one call of the decoder, where no gradient is needed


class PerPoint(NamedTuple):
    """A number of each x with its standard error, both (*batch), in nats."""

    value: Tensor
    standard_error: Tensor


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
        for chunk in rows.split(max(1, MAX_DECODED // samples)):
            shape = (len(chunk), samples, self.noise.shape[-1])
            logs.append(
                self.log_weights(
                    chunk, torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
                ).double()
            )
        log_w = torch.cat(logs) if logs else rows.new_empty(0, samples, dtype=torch.float64)
        total = log_w.logsumexp(-1, keepdim=True)
        share = (log_w - total).exp()
        left_out = torch.log1p(-share).mean(-1)  # log Σ without the k-th, less log Σ
        value = (
            total.squeeze(-1)
            - math.log(samples)
            - (samples - 1) * (left_out + math.log(samples / (samples - 1)))
        )
        error = (share.square().sum(-1) - 1 / samples).clamp(min=0).sqrt()
        return PerPoint(value.reshape(batch).to(x), error.reshape(batch).to(x))

    @torch.no_grad()
    def gap(
        self, x: Tensor, *, samples: int = 4096, generator: torch.Generator | None = None
    ) -> PerPoint:
        """E(x) + log p(x), the gap of the bound at each x, in nats: E against the `evidence` by
        many more points of z.

        It is positive in expectation over the fixed vectors ε; at a single x it may be negative.
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
        logs, batch = [], max(1, MAX_DECODED // len(self.noise))
        for first in range(0, draws, batch):
            u = self.prior.sample(min(batch, draws - first), generator=generator)
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
        """Inside, dropout is on and the measured log Z is discarded; after, the expert is in eval
        mode again."""
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
        bound = (
            f"  bound        E(x) >= -log p(x), on average over {len(self.noise)} fixed points "
            "of z; gap(x) estimates by how much"
        )
        first, *others = super().__repr__().splitlines()
        return "\n".join([first, bound, *others])

    def config(self) -> dict[str, Any]:
        return self._config | {"log_z": None if self._log_z is None else list(self._log_z)}
