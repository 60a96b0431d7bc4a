"""What Python's operators mean between energies: the table of those that nodes carry out, and those
that are refused."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NoReturn

from torch import Tensor, nn

from poe.algebra.text import POWER, SLASH, bracketed, shown

Power = float | Real | Tensor | nn.Parameter

# sign -> what builds the node; each file of a node puts its own here, so that nodes build on
# energies and not the other way round
BUILDERS: dict[str, Callable[[Any, Any], Any]] = {}


def _refusal(message: str) -> Callable[..., Any]:
    """An operator that raises TypeError with this message, in which `{shown}` is the other operand
    as it reads in an expression."""

    def refuse(self: Any, other: Any = None) -> NoReturn:
        raise TypeError(message.format(self=self, other=other, shown=shown(other)))

    return refuse


class Refusals:
    """Operators that could mean two things between energies, or nothing: each raises TypeError with
    what to type instead."""

    __bool__ = _refusal(
        "the truth of an energy is ambiguous ({self}): write `a & b` for a product, `a | b` for a "
        "mixture, `a - b` for a but not b, `~a` for 1/p_a; Python's `and`, `or`, `not` and `if` do "
        "not compose energies"
    )
    __add__ = __radd__ = _refusal(
        "{self} + {other} is ambiguous: write `a & b` for the product (energies add) or `a | b` "
        "for the mixture (densities add); of a list, poe.product(energies) or poe.mixture(energies)"
    )
    __neg__ = _refusal(
        "-({self}) is ambiguous: write `~a` for 1/p_a (the energy negated), or `b - a` for b but "
        "not a"
    )
    __xor__ = _refusal(
        "{self} ^ {other} is ambiguous: write `a ** 2` for a power, `(a - b) | (b - a)` for either "
        "but not both"
    )
    __rsub__, __rand__, __ror__ = (
        _refusal(
            f"{{other!r}} {sign} {{self}}: both sides of `{sign}` must be energies; "
            "poe.as_energy(model) wraps a model"
        )
        for sign in "-&|"
    )
    __rtruediv__ = _refusal(
        "{other!r} / {self}: both sides of `/` must be energies; write `~a` for 1/p_a"
    )
    __rpow__ = _refusal(
        "{other!r} ** {self}: a power stands on the right, and is a number; write `a ** 2` for p_a "
        "squared"
    )
    __rmatmul__ = _refusal(
        "{other!r} @ {self}: the energy stands on the left of `@`; write `a @ f` for the factor "
        "p_a(f(x))"
    )
    __floordiv__ = _refusal(
        "{self} // {shown} means nothing: write `a / b` for p_a / p_b, or `a ** 0.5` for the root "
        "of p_a"
    )
    __mod__ = _refusal(
        "{self} % {shown} means nothing: write `a / b` for p_a / p_b, or `a - b` for a but not b"
    )
    __pos__ = _refusal("+({self}) means nothing: write `a` alone, or `a & b` for a product")

    def __mul__(self, other: Any) -> Any:
        self._refuse_times(other, f"{bracketed(self, SLASH)} * {other}")

    def __rmul__(self, other: Any) -> Any:
        self._refuse_times(other, f"{other} * {bracketed(self, SLASH)}")

    def _refuse_times(self, other: Any, said: str) -> NoReturn:
        power = f"{bracketed(self, POWER + 1)} ** {other}" if isinstance(other, Real) else "a ** 2"
        raise TypeError(
            f"{said} is ambiguous: write `a & b` for the product of densities, `{power}` to weigh "
            "an energy by a number, or poe.mixture([a, b], weights=[0.3, 0.7]) to weigh densities"
        )
