"""Laws that every expert and every kernel must keep: `check_expert(make)`, and invariance of one
step of a kernel.

Each law has a reference from outside the expert: its own rows one by one, finite differences,
quadrature, enumeration, or its draws. Statistical laws are tested at a family-wise level: a correct
expert fails with at most that probability. The folder may use `algebra`, `spaces`, `io` and all
other folders below `sampling`.
"""

from poe.algebra.errors import LawError
from poe.testing.check import Report, check_expert
from poe.testing.invariance import invariance_pvalue, one_step_invariance

__all__ = ["LawError", "Report", "check_expert", "invariance_pvalue", "one_step_invariance"]
