"""Any distribution of `torch.distributions` as a density."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch import distributions as td
from torch.distributions import constraints

from experts.families.parameters import DTYPES
from experts.libraries import seed_of, seeded
from poe.algebra import support as sets
from poe.algebra.energy import Density
from poe.algebra.fingerprint import Fingerprint
from poe.registry import register

_TYPES: dict[str, type[td.Distribution]] = {
    name: kind
    for name in td.__all__
    if inspect.isclass(kind := getattr(td, name)) and issubclass(kind, td.Distribution)
}
_ABSTRACT = ("Distribution", "ExponentialFamily", "TransformedDistribution")
_DTYPES = DTYPES | {"int64": torch.int64}

# whether the density is bounded above, by type; a discrete one always is
_ALWAYS_BOUNDED = (
    "Cauchy ContinuousBernoulli Exponential Gumbel HalfCauchy HalfNormal InverseGamma Laplace "
    "LogNormal LowRankMultivariateNormal MultivariateNormal Normal Pareto StudentT Uniform VonMises"
)
_BOUNDED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_ALWAYS_BOUNDED.split(), lambda d: True),
    "Beta": lambda d: bool((d.concentration1 >= 1).all() and (d.concentration0 >= 1).all()),
    "Chi2": lambda d: bool((d.df >= 2).all()),
    "Dirichlet": lambda d: bool((d.concentration >= 1).all()),
    "FisherSnedecor": lambda d: bool((d.df1 >= 2).all()),
    "Gamma": lambda d: bool((d.concentration >= 1).all()),
    "Kumaraswamy": lambda d: bool((d.concentration1 >= 1).all() and (d.concentration0 >= 1).all()),
    "Weibull": lambda d: bool((d.concentration >= 1).all()),
}

# whether the density is one number all over its support, by type
_FLAT: dict[str, Callable[[Any], bool]] = {
    "Uniform": lambda d: True,
    "Beta": lambda d: bool((d.concentration1 == 1).all() and (d.concentration0 == 1).all()),
    "Dirichlet": lambda d: bool((d.concentration == 1).all()),
}


@register("distribution")
class Distribution(Density):
    """A `torch.distributions` distribution: log_prob in nats, its batch axes being independent
    coordinates of the event.

    The event shape is `dist.batch_shape + dist.event_shape`: `Normal(torch.zeros(3), 1.0)` is one
    density on R^3, and the energy sums over its three coordinates. `config()` names a type of
    torch's public list, never an import path.

    The parameters become buffers (or, where they are `nn.Parameter`s, parameters), so `.to(device,
    dtype)`, `state_dict` and training reach them. A type from outside torch, or
    one built from transforms, is used as it is: it is neither moved nor saved.

    torch's distributions take no generator. With one given, draws are made under a fork of torch's
    global randomness seeded from it; the global state is as before. Without one, draws come from
    the global randomness.

    >>> Distribution(td.Laplace(0.0, 1.0)).event_shape
    torch.Size([])
    """

    def __init__(self, dist: td.Distribution, *, name: str | None = None) -> None:
        if not isinstance(dist, td.Distribution):
            raise TypeError(
                f"Distribution takes a torch.distributions.Distribution, not {type(dist).__name__}"
            )
        try:
            support = _support(dist)
        except NotImplementedError as error:
            raise TypeError(
                f"{type(dist).__name__} states no support: pass the model that made it (a zuko "
                "flow itself, not what calling it gives) or a function, "
                "poe.as_energy(lambda x: -dist.log_prob(x), event_shape=...)"
            ) from error
        super().__init__(dist.batch_shape + dist.event_shape, support=support, name=name)
        self._spec = _describe(dist)
        if self._spec is not None:
            self._hold(dist, self._spec, "")
        self._dist, self._seen = dist, Fingerprint(self._held())
        if self._spec is not None:
            self._dist = _build(self._spec, self._tensor, "")

    def _hold(self, dist: td.Distribution, spec: dict[str, Any], path: str) -> None:
        for key, value in _arguments(dist, spec):
            if isinstance(value, td.Distribution):
                self._hold(value, spec["arguments"][key], f"{path}{key}_")
            elif isinstance(value, nn.Parameter):
                self.register_parameter(path + key, value)
            elif isinstance(value, Tensor):
                own = value.is_leaf or not value.requires_grad
                self.register_buffer(path + key, value.detach().clone() if own else value)

    def _tensor(self, key: str) -> Tensor:
        return getattr(self, key)

    def _held(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    @property
    def dist(self) -> td.Distribution:
        """The distribution with the parameters as they are now."""
        if self._spec is not None:
            held = self._held()
            if any(p.requires_grad for p in self.parameters()) or not self._seen.matches(held):
                self._dist, self._seen = _build(self._spec, self._tensor, ""), Fingerprint(held)
        return self._dist

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        dist = self.dist
        k = len(dist.event_shape)
        if x.numel() == 0:  # some of torch's distributions cannot
            return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)], dtype=self.dtype)
        outside = None
        # an open end, such as 0 of a LogNormal, counts as outside
        if not sets.is_real(self.support):
            support: Any = dist.support
            inside = support.check(x)
            outside = ~inside
            anchor = sets.inside_point(self.support, x, self.event_shape)
            if anchor is not None:
                x = torch.where(inside.reshape(inside.shape + (1,) * k), x, anchor)
        logs = dist.log_prob(x)
        if x.requires_grad and not logs.requires_grad and not sets.is_discrete(self.support):
            # constant on its support, as a Uniform is: the gradient is 0
            logs = logs + (0 * x if k == 0 else (0 * x).flatten(x.ndim - k).sum(-1))
        if outside is not None:
            logs = logs.masked_fill(outside, -math.inf)
        return logs.flatten(logs.ndim - len(dist.batch_shape)).sum(-1) if dist.batch_shape else logs

    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event); n an int or a shape."""
        shape = torch.Size([n] if isinstance(n, int) else n)
        if shape.numel() == 0:  # some of torch's distributions cannot draw 0 values
            return self.dist.sample(torch.Size([1])).new_empty(shape + self.event_shape)
        if generator is None:
            return self.dist.sample(shape)
        with seeded(seed_of(generator), self.device):
            return self.dist.sample(shape)

    @property
    def bounded(self) -> bool | None:
        return True if sets.is_discrete(self.support) else _fact(_BOUNDED, self.dist)

    @property
    def flat(self) -> bool | None:
        return _fact(_FLAT, self.dist)

    def config(self) -> dict[str, Any]:
        if self._spec is None:
            raise TypeError(
                f"{self} wraps a {type(self._dist).__name__}, which is not a plain type of "
                "torch.distributions, so a file cannot hold it: build it from those types, or "
                "write a class with config() and register it with @poe.register"
            )
        return {"spec": _with_values(self._spec, self.dist)}

    @classmethod
    def from_config(cls, *, spec: dict[str, Any]) -> Distribution:
        """A distribution of these types and shapes, to be filled by `load_state_dict`. Raises
        ValueError on any other type.
        """
        return cls(_build(_checked(spec), None, ""))


def _support(dist: td.Distribution) -> sets.Constraint:
    """The support of one event, batch axes included; that of a mixture is a box where its
    components share one.
    """
    shape = dist.batch_shape + dist.event_shape
    if isinstance(dist, td.TransformedDistribution) and isinstance(dist.base_dist, td.VonMises):
        raise TypeError(
            "a transformed VonMises is periodic over all reals, where it has no finite mass; "
            "poe.create('von-mises', ...)"
        )
    if isinstance(dist, td.VonMises):  # torch says all reals, but its draws lie in one period
        return sets.canonical(constraints.interval(-math.pi, math.pi), shape)
    if isinstance(dist, td.Independent):
        return sets.canonical(_support(dist.base_dist), shape)
    if isinstance(dist, td.MixtureSameFamily):
        parts = dist.component_distribution
        axis = len(dist.batch_shape)
        shared = _support(parts)
        if isinstance(shared, sets.Box):
            low, high = shared.low.select(axis, 0), shared.high.select(axis, 0)
            same = (shared.low == low.unsqueeze(axis)) & (shared.high == high.unsqueeze(axis))
            if bool(same.all()):
                return sets.Box(low, high, integer=shared.integer)
    return sets.canonical(dist.support, shape)


def _fact(table: dict[str, Callable[[Any], bool]], dist: td.Distribution) -> bool | None:
    """A fact about a distribution from a table by type; None where it is unknown."""
    if isinstance(dist, td.Independent):
        return _fact(table, dist.base_dist)
    if isinstance(dist, td.MixtureSameFamily):
        return True if table is _BOUNDED and _fact(table, dist.component_distribution) else None
    name = type(dist).__name__
    return table[name](dist) if name in table and _TYPES[name] is type(dist) else None


# ---- a distribution as type and arguments


def _describe(dist: td.Distribution) -> dict[str, Any] | None:
    """{"type": name, "arguments": {name: a number, a nested description, or shape and dtype}}; None
    for any other type.
    """
    name = type(dist).__name__
    if name in _ABSTRACT or _TYPES.get(name) is not type(dist):
        return None
    spec: dict[str, Any] = {"type": name, "arguments": dict.fromkeys(_argument_names(dist))}
    for key, value in _arguments(dist, spec):
        if isinstance(value, td.Distribution):
            inner = _describe(value)
            if inner is None:
                return None
            spec["arguments"][key] = inner
        elif isinstance(value, Tensor):
            spec["arguments"][key] = {
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
                "learnable": isinstance(value, nn.Parameter),
            }
        else:
            spec["arguments"][key] = list(value) if isinstance(value, tuple) else value
    return spec


def _argument_names(dist: td.Distribution) -> list[str]:
    """Of several ways to give one parameter, the one that was used, or the one that torch computes
    with."""
    names = list(inspect.signature(type(dist).__init__).parameters)
    left_out = {"self", "validate_args", "lims"}
    if "scale_tril" in names:
        left_out |= {"covariance_matrix", "precision_matrix"}
    if "probs" in names:
        left_out.add("logits" if _used_probs(dist) else "probs")
    return [key for key in names if key not in left_out]


def _used_probs(dist: td.Distribution) -> bool:
    inner = getattr(dist, "_categorical", None) or getattr(dist, "base_dist", None) or dist
    inner = getattr(inner, "_categorical", inner)
    used = getattr(inner, "_param", None)
    return "probs" in vars(inner) and (used is None or vars(inner)["probs"] is used)


def _arguments(dist: td.Distribution, spec: dict[str, Any]) -> list[tuple[str, Any]]:
    attributes = {"base_distribution": "base_dist"}
    keys: list[str] = list(spec["arguments"])
    return [(key, getattr(dist, attributes.get(key, key))) for key in keys]


def _build(
    spec: dict[str, Any], tensor: Callable[[str], Tensor] | None, path: str
) -> td.Distribution:
    """The distribution of a description, its tensors looked up by path; placeholders where there is
    nothing to look up.
    """
    arguments: dict[str, Any] = {}
    for key, value in spec["arguments"].items():
        if isinstance(value, dict) and "type" in value:
            arguments[key] = _build(value, tensor, f"{path}{key}_")
        elif isinstance(value, dict):
            arguments[key] = _placeholder(key, value) if tensor is None else tensor(path + key)
        else:
            arguments[key] = value
    return _TYPES[spec["type"]](**arguments, validate_args=False)


def _placeholder(key: str, value: dict[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[value["dtype"]], tuple(value["shape"])
    if "value" in value:
        blank = torch.tensor(value["value"], dtype=dtype).reshape(shape)
    elif key == "scale_tril":
        blank = torch.eye(shape[-1], dtype=dtype).expand(shape).clone()
    else:
        # a Wishart wants df > n - 1
        blank = torch.full(shape, 1e6 if key == "df" else 1.0, dtype=dtype)
    return nn.Parameter(blank) if value["learnable"] else blank


def _with_values(spec: dict[str, Any], dist: td.Distribution) -> dict[str, Any]:
    """The description with the numbers on which the support depends written out: they are needed
    before the state is loaded.
    """
    arguments = dict(spec["arguments"])
    dependent = isinstance(inspect.getattr_static(type(dist), "support", None), property)
    for key, value in _arguments(dist, spec):
        if isinstance(value, td.Distribution):
            arguments[key] = _with_values(arguments[key], value)
        elif not dependent or key in ("probs", "logits") or not isinstance(value, Tensor):
            continue
        elif bool(value.isfinite().all()):
            arguments[key] = {**arguments[key], "value": value.tolist()}
    return {"type": spec["type"], "arguments": arguments}


def _checked(spec: Any) -> dict[str, Any]:
    """The description in a file. Raises ValueError unless it names a public type of
    torch.distributions and its arguments."""
    name = spec.get("type") if isinstance(spec, dict) else None
    listed = isinstance(spec, dict) and isinstance(spec.get("arguments"), dict)
    if not listed or not isinstance(name, str) or name in _ABSTRACT or name not in _TYPES:
        raise ValueError(
            f"{name!r} is not a distribution of torch.distributions that a file may name"
        )
    taken = inspect.signature(_TYPES[name].__init__).parameters
    for key, value in spec["arguments"].items():
        if key not in taken or key in ("self", "validate_args"):
            raise ValueError(f"torch.distributions.{name} takes no argument {key!r}")
        if isinstance(value, dict) and "type" in value:
            _checked(value)
        elif isinstance(value, dict) and not (
            isinstance(value.get("shape"), list) and value.get("dtype") in _DTYPES
        ):
            raise ValueError(
                f"the argument {key!r} of torch.distributions.{name} needs a shape and a dtype"
            )
    return spec
