"""What an energy can do beyond its value: the protocols of `poe.algebra.capabilities`, by their
public name."""

from poe.algebra.capabilities import *  # noqa: F403
