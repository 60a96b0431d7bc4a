"""In which variables one draws: sites and their conditionals, points of small spaces, unconstrained
and noise spaces, paths between energies."""

from poe.spaces.points import MOST_STATES, anywhere, energies, enumerable, point_dtype, points

__all__ = ["MOST_STATES", "anywhere", "energies", "enumerable", "point_dtype", "points"]
