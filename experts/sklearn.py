"""Models of scikit-learn as energies, in nats.

| model | energy |
|------------------------------------|------------------------------------------------------------------------------|
| GaussianMixture | a mixture of `Normal`s with its weights: exact draws, closed forms |
| KernelDensity | -log Σᵢ wᵢ k(\\|x - xᵢ\\|/h) / (hᵈ ∫k): exact draws, gradients |
| classifiers with `predict_proba` | -log p(y ∈ labels | x): a factor, without a gradient |

What is taken from a model is a snapshot in torch's default precision; a classifier is called as it
is, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from experts.blackbox import External
from experts.families import Normal
from poe.algebra.bindings import Bindings
from poe.algebra.energy import Density, Energy
from poe.algebra.mixture import mixture
from poe.registry import register

# log k(r), r < 1 where the kernel ends there, and log ∫ r^(d-1) k(r) dr
_LOG_KERNEL: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda r: -r.square() / 2,
    "exponential": lambda r: -r,
    "tophat": lambda r: 0 * r,
    "epanechnikov": lambda r: torch.log1p(-r.square()),
    "linear": lambda r: torch.log1p(-r),
}
_LOG_RADIAL: dict[str, Callable[[int], float]] = {
    "gaussian": lambda d: (d / 2 - 1) * math.log(2) + math.lgamma(d / 2),
    "exponential": lambda d: math.lgamma(d),
    "tophat": lambda d: -math.log(d),
    "epanechnikov": lambda d: math.log(2) - math.log(d * (d + 2)),
    "linear": lambda d: -math.log(d * (d + 1)),
}
_ENDLESS = ("gaussian", "exponential")
MAX_DISTANCES = 2**23  # held at once


@register("gaussian-mixture")
def gaussian_mixture(model: Any, *, name: str | None = None) -> Energy:
    """A fitted GaussianMixture as `poe.mixture` of `Normal`s, a single component as one `Normal`;
    all four types of covariance.

    Raises TypeError for a model that is not fitted.
    """
    _check_fitted(model, "means_")
    dtype = torch.get_default_dtype()
    means = torch.as_tensor(model.means_, dtype=dtype)
    covariances = torch.as_tensor(model.covariances_, dtype=dtype)
    count, d = means.shape
    match model.covariance_type:
        case "full":
            parts = [Normal(m, covariance=c) for m, c in zip(means, covariances, strict=True)]
        case "tied":
            parts = [Normal(m, covariance=covariances) for m in means]
        case _:  # diag, spherical
            scales = covariances.sqrt().reshape(count, -1).expand(count, d)
            parts = [Normal(m, s) for m, s in zip(means, scales, strict=True)]
    if name is not None:
        for index, part in enumerate(parts):
            part.name = name if count == 1 else f"{name}_{index}"
    return parts[0] if count == 1 else mixture(parts, weights=model.weights_.tolist())


@register("kernel-density")
class KernelDensity(Density):
    """p(x) = Σᵢ wᵢ k(|x - xᵢ|/h) / (hᵈ ∫k) over R^d, |·| Euclidean.

    Arguments:
        model: a fitted KernelDensity of scikit-learn; by default the arguments below.
        points, weights, bandwidth: (n, d), (n) of positive sum (equal by default), and h (units of
            x).
        kernel: "gaussian", "exponential", "tophat", "epanechnikov" or "linear", k(r) = e^(-r²/2),
            e^-r, and 1, 1 - r², 1 - r for r < 1.

    Draws are xᵢ + h r v, i of probability wᵢ, v a uniform direction, and r of density ∝ r^(d-1)
    k(r): r² ~ Chi²(d), r ~ Gamma(d), r = u^(1/d), r² ~ Beta(d/2, 2), r ~ Beta(d, 2).

    Raises ValueError for the kernel "cosine" or a metric other than the Euclidean one.
    """

    bounded: bool | None = True
    points: Tensor
    log_weights: Tensor
    bandwidth: Tensor

    def __init__(
        self,
        model: Any = None,
        *,
        points: Any = None,
        weights: Any = None,
        bandwidth: float = 1.0,
        kernel: str = "gaussian",
        name: str | None = None,
    ) -> None:
        if model is not None:
            _check_fitted(model, "tree_")
            power = (model.metric_params or {}).get("p", 2)
            if model.metric not in ("euclidean", "l2", "minkowski") or power != 2:
                raise ValueError(
                    f"only Euclidean distances are supported, the model has metric={model.metric!r}"
                )
            points, weights = np.asarray(model.tree_.data), model.tree_.sample_weight
            bandwidth, kernel = float(model.bandwidth_), model.kernel
        if points is None:
            raise TypeError(
                "a KernelDensity takes a fitted model of scikit-learn, or points=, an array (n, d)"
            )
        if kernel not in _LOG_KERNEL:
            known = ", ".join(_LOG_KERNEL)
            raise ValueError(f"kernel {kernel!r} is not supported; choose one of {known}")
        x = torch.as_tensor(points, dtype=torch.get_default_dtype())
        w = torch.ones(len(x)) if weights is None else torch.as_tensor(np.asarray(weights))
        fits = x.ndim == 2 and w.shape == (len(x),)
        if not (fits and bool((w >= 0).all()) and float(w.sum()) > 0 and bandwidth > 0):
            raise ValueError(
                "points (n, d), weights (n) >= 0 of positive sum and bandwidth > 0 are needed, not "
                f"points {tuple(x.shape)}, weights {tuple(w.shape)}, bandwidth {bandwidth}"
            )
        super().__init__(x.shape[1:], name=name)
        self.kernel = kernel
        self.register_buffer("points", x)
        self.register_buffer("log_weights", (w.double() / w.double().sum()).log().to(x))
        self.register_buffer("bandwidth", torch.tensor(bandwidth).to(x))

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        """log p(x) in nats; -inf out of reach of every point."""
        d = self.event_shape[0]
        rows = x.reshape(-1, d)
        area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)  # of the unit sphere
        constant = area + _LOG_RADIAL[self.kernel](d) + d * self.bandwidth.log()
        chunks = rows.split(max(1, MAX_DISTANCES // len(self.points)))
        return (torch.cat([*map(self._summed, chunks)]) - constant).reshape(x.shape[:-1])

    def _summed(self, rows: Tensor) -> Tensor:  # (n, d) -> (n)
        r = torch.cdist(rows, self.points, compute_mode="donot_use_mm_for_euclid_dist")
        r = r / self.bandwidth
        if self.kernel in _ENDLESS:
            return (_LOG_KERNEL[self.kernel](r) + self.log_weights).logsumexp(-1)
        near = r < 1
        logs = torch.where(near, _LOG_KERNEL[self.kernel](torch.where(near, r, 0.0)), -math.inf)
        logs = torch.where(r.isnan(), r, logs) + self.log_weights
        reached = near.any(-1) | r.isnan().any(-1)  # logsumexp of nothing has no gradient
        logs = torch.where(reached[:, None], logs, 0.0)
        return torch.where(reached, logs.logsumexp(-1), -math.inf)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, d)."""
        batch, d = (n,) if isinstance(n, int) else tuple(n), self.event_shape[0]
        total, like = math.prod(batch), self.points
        if not total:
            return like.new_empty(*batch, d)
        options: Any = {"dtype": torch.float64, "device": like.device, "generator": generator}
        weights = self.log_weights.double().exp()
        which = torch.multinomial(weights, total, replacement=True, generator=generator)
        step = torch.randn(total, d, **options)
        if self.kernel != "gaussian":
            uniform = torch.rand(total, d + 2, **options).clamp_min(1e-300)
            step = step / step.norm(dim=-1, keepdim=True) * self._radii(uniform)[:, None]
        return (self.points[which] + self.bandwidth * step.to(like)).reshape(*batch, d)

    def _radii(self, uniform: Tensor) -> Tensor:  # (n, d + 2) -> (n)
        """r of density ∝ r^(d-1) k(r): sums of exponentials are Gammas, and order statistics of
        uniforms are Betas."""
        d = uniform.shape[-1] - 2
        match self.kernel:
            case "exponential":  # Gamma(d)
                return -uniform[:, :d].log().sum(-1)
            case "tophat":
                return uniform[:, 0] ** (1 / d)
            case "linear":  # Beta(d, 2): the second largest of d + 1
                return uniform[:, : d + 1].topk(2).values[:, 1]
            case _:  # Epanechnikov, r² ~ Beta(d/2, 2): the product u^(2/d) v^(2/(d + 2))
                return uniform[:, 0] ** (1 / d) * uniform[:, 1] ** (1 / (d + 2))

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.points.shape), "kernel": self.kernel}

    @classmethod
    def from_config(cls, *, shape: Sequence[int], kernel: str) -> KernelDensity:
        return cls(points=np.zeros(tuple(shape)), kernel=kernel)


@register("sklearn-classifier")
class PredictProba(External):
    """E(x) = -log p(y ∈ labels | x) of a fitted classifier with `predict_proba`, one row of
    features being one x: at least 0.

    It says nothing about how likely x is (`prior & PredictProba(...)` does), and has no gradient.

    Arguments:
        model: the classifier, or a pipeline or search that ends in one.
        labels: the wanted class, or several of which any will do, as they stand in
            `model.classes_`; else bound by `.given(label)`.
        event_shape: shape of one x; it is flattened to the model's features, by default
            (n_features_in_,).
        smoothing: s in [0, 1): (1 - s) p + s/K of K classes stands for p. Forests and nearest
            neighbours give 0 to an unseen class, so that E = +inf in any product.

    Raises TypeError for a model without `predict_proba`, or not fitted, ValueError for labels it
    does not know.
    """

    reason = "scikit-learn's predict_proba is computed outside torch"

    def __init__(
        self,
        model: Any,
        labels: Any = None,
        *,
        event_shape: Sequence[int] | None = None,
        smoothing: float = 0.0,
        name: str | None = None,
    ) -> None:
        try:
            self._predict = model.predict_proba
        except AttributeError as error:
            raise TypeError(
                f"{type(model).__name__} has no predict_proba ({error}): wrap it in "
                "CalibratedClassifierCV, or build it with probability=True"
            ) from error
        _check_fitted(model, "classes_")
        features = int(model.n_features_in_)
        event = (features,) if event_shape is None else tuple(event_shape)
        if math.prod(event) != features:
            raise ValueError(
                f"events of shape {event} do not fill the {features} features of "
                f"{type(model).__name__}"
            )
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is a share in [0, 1), not {smoothing}")
        super().__init__(event, bounded=True, name=name)
        self.model, self.smoothing, self.classes = model, smoothing, list(model.classes_)
        self._columns = None if labels is None else self._found(labels)
        self.context = None if self._columns is None else tuple(self._columns)
        self._bindings = Bindings()
        if labels is None:
            self.takes_context = True

    def given(self, context: Any) -> PredictProba:
        """The factor for this label, or for any of these."""
        facts: Any = {"smoothing": self.smoothing, "name": self.name}
        bound = PredictProba(self.model, context, event_shape=self.event_shape, **facts)
        return self._bindings.first(bound, bound.context)

    def energies(self, rows: np.ndarray) -> np.ndarray:  # (n, *event) -> (n)
        if self._columns is None:
            raise TypeError(
                f"{self} has no class bound: bind one of {self.classes} with .given(label)"
            )
        flat = rows.reshape(len(rows), -1)
        finite: np.ndarray = np.asarray(np.isfinite(flat).all(1))
        share = self._predict(np.where(finite[:, None], flat, 0.0))
        wanted = (1 - self.smoothing) * share[:, self._columns].sum(1)
        wanted = wanted + self.smoothing * len(self._columns) / len(self.classes)
        with np.errstate(divide="ignore"):
            # shares may sum to 1 + 1e-16
            return np.where(finite, np.maximum(-np.log(wanted), 0.0), np.nan)

    def config(self) -> dict[str, Any]:
        raise TypeError(
            f"{self} wraps a model of scikit-learn, which only pickles hold: save it yourself, and "
            "wrap it again"
        )

    def _found(self, labels: Any) -> list[int]:
        labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
        wanted = labels if isinstance(labels, list | tuple | set) else [labels]
        unknown = [label for label in wanted if label not in self.classes]
        if unknown or not wanted:
            raise ValueError(
                f"the model knows the classes {[str(c) for c in self.classes]}, not "
                f"{unknown or 'an empty choice'}"
            )
        return sorted({self.classes.index(label) for label in wanted})


def _check_fitted(model: Any, fact: str) -> None:
    try:
        getattr(model, fact)
    except AttributeError as error:
        kind = type(model).__name__
        raise TypeError(f"this {kind} is not fitted: call .fit(data) first") from error
