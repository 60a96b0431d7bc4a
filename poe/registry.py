"""Experts by name: one table for the experts of this library and of plug-ins.

A package offers experts through entry points in group `poe.experts`: the name is what `poe.create`
takes, the value a class, a factory, or a module that registers its experts when it is imported. Our
own experts are imported when one is asked for; plug-ins, which may register further names, on
the first unknown name or listing.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

DISTRIBUTION = "product-of-experts"
GROUP = "poe.experts"
CONVERTERS = "poe.converters"
NAME = re.compile(r"[a-z][a-z0-9-]*")

Owner = TypeVar("Owner", bound=Callable[..., Any])
Convert = TypeVar("Convert", bound=Callable[..., Any])


class PoeError(Exception):
    """Base of the errors of this library that are not errors of arguments alone."""


class PoeWarning(UserWarning):
    """Base of the warnings of this library."""


class RegistryError(PoeError, ValueError):
    """A name that cannot be registered, or an expert that cannot be loaded."""


class UnknownExpert(RegistryError, KeyError):
    """This name is not registered; the message lists the near ones."""

    def __str__(self) -> str:  # a KeyError would print the repr of its message
        return str(self.args[0])


_owners: dict[str, Callable[..., Any]] = {}
_names: dict[Callable[..., Any], str] = {}
_tried: set[EntryPoint] = set()
# qualified class name -> registry name, or a function of the object
_converters: dict[str, str | Callable[..., Any]] = {
    "poe.algebra.energy.Energy": lambda energy: energy,
    "nflows.flows.base.Flow": "flow",
    "torch.distributions.distribution.Distribution": "distribution",
    "torch.nn.modules.module.Module": "function",
}


def register(name: str) -> Callable[[Owner], Owner]:
    """Decorator that makes a class or a factory known as `name` (lower-case letters, digits and
    dashes).

    Raises:
        RegistryError: the name has another form, or is registered already.
    """
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{name!r} cannot name an expert: use lower-case letters, digits and dashes"
        )

    def add(owner: Owner) -> Owner:
        first = _owners.setdefault(name, owner)
        if first is not owner:
            raise RegistryError(
                f"the name {name!r} belongs to {_path(first)}; register {_path(owner)} under "
                "another one"
            )
        _names.setdefault(owner, name)
        return owner

    return add


def create(name: str, /, **arguments: Any) -> Any:
    """The expert registered as `name`, built with these arguments.

    Raises:
        UnknownExpert: the name is not registered; the message suggests near ones.
        ImportError: the expert needs a library that is not installed; the message names it, and the
            extra that brings it.
        RegistryError: the plug-in that offers the name is broken; the message names its
            distribution.
    """
    try:
        return lookup(name)(**arguments)
    except ModuleNotFoundError as error:
        _add_install_line(error)
        raise


def lookup(name: str) -> Callable[..., Any]:
    """The class or factory registered as `name`; raises as `create` does."""
    if name not in _owners and name in _declared(GROUP):
        _load_asked(_declared(GROUP)[name])
    if name not in _owners:
        _load_plugins()
    if name not in _owners:
        raise UnknownExpert(_unknown(name))
    return _owners[name]


def available() -> list[str]:
    """Every name that `create` takes, sorted; those of plug-ins included."""
    _load_plugins()
    ours = {name for name, point in _declared(GROUP).items() if not _is_foreign(point)}
    return sorted(ours | set(_owners))


def name_of(owner: Callable[..., Any]) -> str | None:
    """The name that a class or factory is registered under, or offered by a plug-in; None where it
    is not."""
    if owner in _names:
        return _names[owner]
    points, path = _declared(GROUP).items(), _path(owner)
    return next((name for name, p in points if f"{p.module}.{p.attr}" == path), None)


def converter(type_path: str) -> Callable[[Convert], Convert]:
    """Decorator for a function that `as_energy` calls on objects of the class with this qualified
    name.

    It serves subclasses too. The class is given by name ("zuko.flows.core.Flow"), so that the
    library is not imported where it is not used. A package may also name its converters in the
    entry points group `poe.converters`, as qualified class name = function.
    """

    def add(convert: Convert) -> Convert:
        first = _converters.setdefault(type_path, convert)
        if first is not convert:
            owner = f"the expert {first!r}" if isinstance(first, str) else _path(first)
            raise RegistryError(f"objects of {type_path} are converted by {owner} already")
        return convert

    return add


def as_energy(obj: Any, /, **arguments: Any) -> Any:
    """`obj` as an energy: a flow, a torch distribution, a module, any callable x -> energy, or an
    energy.

    The classes of `obj` choose the expert, the most specific first; the arguments go to that expert
    (a callable needs `event_shape`, for instance). An energy comes back as it is.

    Raises:
        TypeError: no converter is known for such an object.
    """
    if isinstance(obj, type):
        raise TypeError(f"{_path(obj)} is a class: pass an instance of it")
    for cls in type(obj).__mro__:
        found = _converters.get(_path(cls)) or _declared_converter(_path(cls))
        if found is not None:
            convert = lookup(found) if isinstance(found, str) else found
            return convert(obj, **arguments)
    if callable(obj):
        return lookup("function")(obj, **arguments)
    raise TypeError(
        f"cannot read {_path(type(obj))} as an energy: pass a callable x -> energy, a torch "
        "distribution, or a model of nflows, zuko, normflows, sbi, scikit-learn or diffusers; "
        "samples become one by poe.fit_density(samples), a log-density outside torch by "
        'poe.create("black-box", log_prob=..., event_shape=...), any other type by '
        f"@poe.converter({_path(type(obj))!r})"
    )


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x' or 'y'?`, or an empty text where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of installed packages in one group; unreadable metadata warns and gives
    none."""
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception as error:  # metadata of another package must not stop this library
        _warn(f"the entry points of group {group!r} cannot be read: {_reason(error)}")
        return []


@functools.cache
def _declared(group: str) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group):
        first = points.setdefault(point.name, point)
        if first.value != point.value:
            _warn(
                f"{_source(point)} and {_source(first)} both offer {point.name!r}; the latter is "
                "used"
            )
    return points


def _declared_converter(type_path: str) -> Callable[..., Any] | None:
    point = _declared(CONVERTERS).get(type_path)
    return None if point is None else point.load()


def _load(point: EntryPoint) -> None:
    _tried.add(point)
    loaded = point.load()
    if point.attr:  # a bare module has registered its experts by now
        register(point.name)(loaded)


def _load_asked(point: EntryPoint) -> None:
    try:
        _load(point)
    except ImportError as error:
        _add_install_line(error)
        raise
    except Exception as error:
        raise RegistryError(_failure(point, error)) from error


def _load_plugins() -> None:
    """Import installed plug-ins, once: their modules may register further names."""
    for point in _declared(GROUP).values():
        if point in _tried or not _is_foreign(point):
            continue
        try:
            _load(point)
        except Exception as error:
            _warn(_failure(point, error))


def _is_foreign(point: EntryPoint) -> bool:
    return point.dist is None or _canonical(point.dist.name) != DISTRIBUTION


def _unknown(name: str) -> str:
    known = available()
    for extra, requirements in _extras(DISTRIBUTION).items():
        if name == extra or name in requirements:
            install = _install_line(DISTRIBUTION, extra)
            return (
                f"no expert is named {name!r}: {install} brings the library, and "
                "poe.as_energy(model) takes a model of it"
            )
    hint = near(name, known) or f"; available: {', '.join(known) or 'none'}"
    return f"no expert is named {name!r}{hint}"


def _add_install_line(error: ImportError) -> None:
    """Tell which extra brings the missing module, where an installed package says so."""
    module = (error.name or "").partition(".")[0]
    sources = {point.dist.name for point in _declared(GROUP).values() if point.dist is not None}
    for source in sorted(sources | {DISTRIBUTION}):
        for extra, requirements in _extras(source).items():
            line = _install_line(source, extra)
            if module and _canonical(module) in requirements and line not in str(error):
                error.msg = f"{error}; install it with {line}"
                return


def _extras(distribution: str) -> dict[str, set[str]]:
    """The packages that each extra of an installed distribution brings."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, set[str]] = {}
    for line in lines:
        match = re.match(r"([\w.-]+).*extra *== *[\"']([\w-]+)", line)
        if match:
            extras.setdefault(match[2], set()).add(_canonical(match[1]))
    return extras


def _install_line(distribution: str, extra: str) -> str:
    return f"pip install '{distribution}[{extra}]'"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _source(point: EntryPoint) -> str:
    where = f"at {point.value!r}" if point.dist is None else repr(point.dist.name)
    return f"the plug-in {where}"


def _failure(point: EntryPoint, error: Exception) -> str:
    return f"the expert {point.name!r} of {_source(point)} cannot be loaded: {_reason(error)}"


def _warn(message: str) -> None:
    warnings.warn(message, PoeWarning, stacklevel=4)


def _path(owner: Any) -> str:
    return f"{owner.__module__}.{getattr(owner, '__qualname__', type(owner).__qualname__)}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
