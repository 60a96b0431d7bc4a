"""Parameters and draws of exponential families: read, checked, spread over shapes; draws from a
generator."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poe.algebra.closed_forms import Improper

PLAIN = (int, float, list, tuple)  # numbers without a precision of their own
ROUNDING = 16 * torch.finfo(torch.float64).eps  # relative error of a sum of natural parameters

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def hold(module: nn.Module, values: Mapping[str, Tensor], *, learnable: bool) -> None:
    """Registers values as buffers of a module, or as parameters where they are such, or all of them
    where `learnable`."""
    for key, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(key, value)
        elif learnable:
            module.register_parameter(key, nn.Parameter(value))
        else:
            module.register_buffer(key, value)


def recipe(values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Shapes, which of them are learned, and the precision: plain arguments for `blanks`."""
    return {
        "shapes": {key: list(value.shape) for key, value in values.items()},
        "learnable": [key for key, value in values.items() if isinstance(value, nn.Parameter)],
        "dtype": str(dtype).removeprefix("torch."),
    }


def blanks(
    make: Callable[[str, tuple[int, ...]], Tensor],
    shapes: Mapping[str, Sequence[int]],
    learnable: Sequence[str],
    dtype: str,
) -> dict[str, Tensor]:
    """Values of these shapes, made by `make(key, shape)`, to be filled by `load_state_dict`. Raises
    ValueError for an unknown precision."""
    if dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is not a precision; use one of {', '.join(DTYPES)}")
    values = {key: make(key, tuple(shape)).to(DTYPES[dtype]) for key, shape in shapes.items()}
    return {k: nn.Parameter(v) if k in learnable else v for k, v in values.items()}


def as_tensor(value: Any) -> Tensor:
    """Python's numbers in full precision: what they are next to decides what they become."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, PLAIN) else None)


def tensors(**values: Any) -> dict[str, Tensor]:
    """Parameters as floating tensors of one precision: that of the tensors given, else torch's
    default. Raises on NaN and inf.
    """
    raw = {key: as_tensor(value) for key, value in values.items()}
    given = [t for key, t in raw.items() if not isinstance(values[key], PLAIN)]
    typed = [t.dtype for t in given if t.is_floating_point()] or [torch.get_default_dtype()]
    dtype = functools.reduce(torch.promote_types, typed)
    for key, tensor in raw.items():
        if not bool(tensor.isfinite().all()):
            bad = first_bad(tensor, lambda v: ~v.isfinite())
            raise ValueError(f"{key} = {bad}: parameters must be finite numbers")
    free = {k: t for k, t in raw.items() if not isinstance(t, nn.Parameter)}
    return raw | {key: t.detach().to(dtype).clone() for key, t in free.items()}


def parameters(**values: Any) -> dict[str, Tensor]:
    """`tensors`, spread over their common shape; an `nn.Parameter` keeps its own. Raises where the
    shapes do not fit.
    """
    found = tensors(**values)
    return expanded(found, common_shape(found))


def positive(meaning: str, **values: Any) -> dict[str, Tensor]:
    """`parameters`, all positive. Raises ValueError, with what they mean, where one is not."""
    found = parameters(**values)
    for key, value in found.items():
        require_positive(key, value, meaning)
    return found


def common_shape(values: dict[str, Tensor]) -> torch.Size:
    """The shape that all parameters broadcast to. Raises ValueError where they do not."""
    try:
        return torch.broadcast_shapes(*(tensor.shape for tensor in values.values()))
    except RuntimeError:
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in values.items())
        raise ValueError(f"the shapes of the parameters do not fit together: {shapes}") from None


def expanded(values: dict[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
    """The values at this shape; an `nn.Parameter` and a Cholesky factor keep their own."""
    return {
        key: value
        if isinstance(value, nn.Parameter) or key == "scale_tril"
        else value.expand(tuple(shape)).clone()
        for key, value in values.items()
    }


def first_bad(value: Tensor, bad: Callable[[Tensor], Tensor]) -> float:
    """The first number of which `bad` holds."""
    return value.detach()[bad(value.detach())].flatten()[0].item()


def require_positive(key: str, value: Tensor, meaning: str) -> None:
    """Raises ValueError, with what the parameter means, where some value is not positive."""
    if not bool((value > 0).all()):
        raise ValueError(f"{key} = {first_bad(value, lambda v: ~(v > 0)):g}: {meaning}")


def logits_of(family: str, probs: Any, logits: Any, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits of a family that takes probabilities or logits. Raises where both or none are
    given."""
    if (probs is None) == (logits is None):
        raise TypeError(f"{family} takes one of probs= and logits=")
    if logits is not None:
        if isinstance(logits, nn.Parameter):
            return logits
        value = as_tensor(logits)
        plain = isinstance(logits, PLAIN) or not value.is_floating_point()
        return value.detach().to(torch.get_default_dtype() if plain else value.dtype).clone()
    if isinstance(probs, nn.Parameter):
        raise TypeError(
            f"probabilities are learned through their logits: {family}(logits=nn.Parameter(...)), "
            "or learnable=True"
        )
    value = tensors(probs=probs)["probs"]
    if bool((value < 0).any() or (family == "Bernoulli" and (value > 1).any())):
        raise ValueError(
            f"probs = {first_bad(value, lambda v: (v < 0) | (v > 1)):g}: a probability must lie "
            "between 0 and 1"
        )
    return inverse(value)


def cholesky_of(covariance: Tensor) -> Tensor:
    """The Cholesky factor of a covariance. Raises ValueError where there is no factor."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(
            "a covariance must be a square matrix over the flattened event, not of shape "
            f"{tuple(covariance.shape)}"
        )
    if not torch.allclose(
        covariance, covariance.mT, rtol=1e-5, atol=1e-8 * float(covariance.abs().max())
    ):
        raise ValueError("a covariance must be symmetric; (C + C.mT) / 2 makes C symmetric")
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise ValueError(
            "the covariance is not positive definite: its smallest eigenvalue is "
            f"{torch.linalg.eigvalsh(covariance)[0].item():.3g}"
        )
    return factor


def fit_covariance(values: dict[str, Tensor]) -> torch.Size:
    """The event shape of a Normal with full covariance. Raises where its factor does not fit it."""
    tril, loc = values["scale_tril"], values["loc"]
    if tril.ndim != 2 or tril.shape[0] != tril.shape[1]:
        raise ValueError(
            "scale_tril must be a square matrix over the flattened event, not of shape "
            f"{tuple(tril.shape)}"
        )
    require_positive(
        "the diagonal of scale_tril", tril.diagonal(), "a Cholesky factor needs a positive diagonal"
    )
    if bool((tril != tril.tril()).any()):
        raise ValueError(
            "scale_tril must be zero above its diagonal; torch.linalg.cholesky(covariance) "
            "returns such a factor"
        )
    shape = loc.shape if loc.ndim else torch.Size([len(tril)])
    if shape.numel() != len(tril):
        raise ValueError(
            f"loc has shape {tuple(loc.shape)}, {shape.numel()} numbers, but the covariance is "
            f"{len(tril)} x {len(tril)}"
        )
    return shape


def in_domain(
    member: str, values: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
) -> bool:
    """Whether all values are positive beyond their rounding errors (by default 0). Raises Improper
    where one certainly is not."""
    bounds = [torch.zeros_like(value) for value in values] if rounding is None else rounding
    for value, bound in zip(values, bounds, strict=True):
        if bool(((value == 0) | (value < -bound)).any()):
            raise Improper(
                f"{member} needs positive parameters, and the powers leave {value.min().item():g}"
            )
    return all(bool((value > bound).all()) for value, bound in zip(values, bounds, strict=True))


# ---- draws and stable logarithms


def times_log(coefficient: Tensor, x: Tensor) -> Tensor:
    """coefficient·log x, 0 with gradient 0 where the coefficient is 0, x = 0 included."""
    return coefficient * torch.where(coefficient == 0, 1, x).log()


def uniforms(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform on [0, 1), float64, (*shape, *like.shape)."""
    size = (*shape, *like.shape)
    return torch.rand(size, dtype=torch.float64, device=like.device, generator=generator)


def log_gamma_draws(
    concentration: Tensor, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    """log of Gamma(a, 1) draws: log G(a + 1) + log(U)/a, which no small a underflows (Marsaglia &
    Tsang 2000).
    """
    full = concentration.expand((*shape, *concentration.shape))
    uniform = 1 - uniforms(concentration, shape, generator)
    return torch._standard_gamma(full + 1, generator=generator).log() + uniform.log() / full


def von_mises_draws(kappa: Tensor, generator: torch.Generator | None) -> Tensor:  # (n) -> (n)
    """Angles about 0: z = cos πU₁, f = (1 + rz)/(r + z), accepted where log(c/U₂) + 1 >= c, c = κ(r
    - f), signed by U₃.
    """
    tau = 1 + (1 + 4 * kappa.square()).sqrt()
    rho = (tau - (2 * tau).sqrt()) / torch.where(kappa > 0, 2 * kappa, 1)
    inner = (1 + rho.square()) / torch.where(rho > 0, 2 * rho, 1)
    r = torch.where(kappa < 1e-5, 1 / kappa.clamp_min(1e-300), inner)
    flat = kappa < 1e-200
    angle, todo = torch.empty_like(kappa), torch.arange(len(kappa), device=kappa.device)
    while len(todo):
        u = torch.rand(3, len(todo), dtype=torch.float64, device=kappa.device, generator=generator)
        z = (math.pi * u[0]).cos()
        cosine = torch.where(flat[todo], z, (1 + r[todo] * z) / (r[todo] + z))
        c = kappa[todo] * (r[todo] - cosine)
        accepted = flat[todo] | (c * (2 - c) > u[1]) | ((c / u[1]).log() + 1 >= c)
        angle[todo[accepted]] = (cosine.clamp(-1, 1).acos() * (u[2] - 0.5).sign())[accepted]
        todo = todo[~accepted]
    return angle
