"""The variables in which a target is drawn: sites of discrete events and their conditionals,
points of small spaces, unconstrained coordinates, transports, noise levels, paths between energies,
and the structure of a target. Uses poe.algebra only."""

from poe.spaces.points import MAX_STATES, energies, enumerable, point_dtype, points, uniform_points

__all__ = ["MAX_STATES", "energies", "enumerable", "point_dtype", "points", "uniform_points"]
