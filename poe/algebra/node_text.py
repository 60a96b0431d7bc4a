"""The text of the nodes: how each is written, and what its parts are to it."""

from __future__ import annotations

from typing import Any

from poe.algebra.contrast import Contrast
from poe.algebra.maps import stated_shape
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product, Term
from poe.algebra.pullback import Pullback, is_on
from poe.algebra.shifted import Shifted
from poe.algebra.text import (
    AND,
    ATOM,
    MINUS,
    OR,
    POWER,
    SLASH,
    TILDE,
    balances,
    child,
    function_name,
    function_of,
    number,
    roles,
    wrap,
    written,
)


@written.register
def _(energy: Product, label: dict[int, str]) -> tuple[str, int]:
    chunks: list[tuple[str, int]] = []
    for term in energy.terms:
        if term.coefficient < 0 and chunks:
            divisor = wrap(factor(term, label, divided=True), SLASH + 1)
            chunks[-1] = f"{wrap(chunks[-1], SLASH)} / {divisor}", SLASH
        else:
            chunks.append(factor(term, label))
    if len(chunks) == 1:
        return chunks[0]
    joined = " & ".join(wrap(chunk, AND) for chunk in chunks)
    shared = {term.coefficient for term in energy.terms}
    if len(shared) == 1 and not energy.learnable and joined.count("(") > 1:
        power = shared.pop()
        bases = " & ".join(wrap(child(t.energy, label), AND) for t in energy.terms)
        factored = f"({bases}) ** {number(power)}"
        if factored.count("(") <= joined.count("("):
            return factored, POWER
    return joined, AND


@roles.register
def _(energy: Product) -> list[str]:
    return ["" if power == 1 else f"** {number(power)}" for power in energy.powers]


@written.register
def _(energy: Mixture, label: dict[int, str]) -> tuple[str, int]:
    texts = [child(part, label) for part in energy.parts]
    if energy.weights is None and len(texts) > 1:
        wrapped = [wrap(texts[0], OR)] + [wrap(text, OR + 1) for text in texts[1:]]
        return " | ".join(wrapped), OR
    inner = ", ".join(text for text, _ in texts)
    weights = f", weights=[{', '.join(map(repr, energy.weights))}]" if energy.weights else ""
    return f"poe.mixture([{inner}]{weights})", ATOM


@roles.register
def _(energy: Mixture) -> list[str]:
    return [f"{100 * w:.4g} %" for w in energy.weights or ()] or [""] * len(energy.parts)


@written.register
def _(energy: Contrast, label: dict[int, str]) -> tuple[str, int]:
    return _steps(energy, label)[-1]


def _steps(energy: Contrast, label: dict[int, str]) -> list[tuple[str, int]]:
    """The text of a, of a - b, of a - b - c, ..."""
    steps = [child(energy.wanted, label)]
    for part, strength in zip(energy.parts[1:], energy.strengths, strict=True):
        text, other = steps[-1], child(part, label)
        if strength == 1:
            text = f"{wrap(text, MINUS)} - {wrap(other, MINUS + 1)}", MINUS
        else:
            text = f"poe.contrast({text[0]}, {other[0]}, strength={number(strength)})", ATOM
        steps.append(text)
    return steps


@roles.register
def _(energy: Contrast) -> list[str]:
    return ["wanted"] + [
        "unwanted" if strength == 1 else f"unwanted, strength {strength:g}"
        for strength in energy.strengths
    ]


@written.register
def _(energy: Pullback, label: dict[int, str]) -> tuple[str, int]:
    text = child(energy.energy, label)
    shape = tuple(energy.event_shape)
    if is_on(energy):
        return f"poe.on({text[0]}, {energy.function.index.tolist()}, {shape})", ATOM
    function = label[id(energy.function)]
    if stated_shape(energy.function) is None and energy.event_shape != energy.energy.event_shape:
        return f"poe.pullback({text[0]}, {function}, {shape})", ATOM
    return f"{wrap(text, SLASH)} @ {function}", SLASH


@roles.register
def _(energy: Pullback) -> list[str]:
    if is_on(energy):
        return [f"on {energy.function.index.tolist()}"]
    return [f"of {function_name(energy.function)}(x)"]


@written.register
def _(energy: Shifted, label: dict[int, str]) -> tuple[str, int]:
    inner, known = f"{child(energy.energy, label)[0]}, {energy.offset!r}", energy.stated
    if known is not None:
        inner += f", log_z=poe.Estimate({known.value!r}, {known.standard_error!r})"
    return f"poe.shift({inner})", ATOM


@roles.register
def _(energy: Shifted) -> list[str]:
    return [f"{energy.offset:+.6g} nats"]


def factor(term: Term, label: dict[int, str], *, divided: bool = False) -> tuple[str, int]:
    """A factor of a product and its power; `divided`: as it stands after `/`."""
    inner, coefficient = child(term.energy, label), term.coefficient
    coefficient = abs(coefficient) if divided else coefficient
    if term.parameter is not None:
        text = f"{wrap(inner, POWER + 1)} ** Parameter(tensor({term.parameter.item()!r}))"
        if abs(coefficient) == 1:
            return (text, POWER) if coefficient > 0 else (f"~{text}", TILDE)
        return f"({text}) ** {number(coefficient)}", POWER
    if coefficient == 1:
        return inner
    if coefficient == -1:
        return f"~{wrap(inner, TILDE)}", TILDE
    return f"{wrap(inner, POWER + 1)} ** {number(coefficient)}", POWER


@balances.register
def _(energy: Mixture, label: dict[int, str]) -> list[tuple[str, list[str]]]:
    return [("|", [child(part, label)[0] for part in energy.parts if part.log_z is None])]


@balances.register
def _(energy: Contrast, label: dict[int, str]) -> list[tuple[str, list[str]]]:
    first, *later = [text for text, _ in _steps(energy, label)[:-1]]
    left = [[first] if energy.wanted.log_z is None else [], *([text] for text in later)]
    right = [[child(part, label)[0]] if part.log_z is None else [] for part in energy.parts[1:]]
    return [("-", a + b) for a, b in reversed(list(zip(left, right, strict=True)))]


@function_of.register
def _(energy: Pullback) -> Any:
    return None if is_on(energy) else energy.function
