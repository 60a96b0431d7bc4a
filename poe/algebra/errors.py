"""Errors and warnings about what an energy is: its mass, and the laws that it must keep."""

from __future__ import annotations

from poe.registry import PoeError, PoeWarning


class ImproperWarning(PoeWarning):
    """It is unknown whether the target has finite mass."""


class ImproperError(PoeError, ValueError):
    """The target has no finite mass, or none at all: there is nothing to draw from."""


class LawError(PoeError, AssertionError):
    """An expert breaks a law that every expert keeps; the message names the law."""
