"""The progress of one call: the bar that shows it, the evaluations that it may take, and the points
that it has so far."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from poe.algebra.energy import Estimate
from poe.mcmc import parallel

BAR_DELAY = 2.0  # seconds into a call, from which a bar shows by itself
INTERRUPTED = "interrupted"


class Stopped(Exception):
    """The next step would take more evaluations than the call may take."""


@dataclass(eq=False)
class Progress:
    """What the phases of one call share.

    Attributes:
        show: whether there is a bar; None for one that shows on a terminal once the call has taken
            `BAR_DELAY` seconds. Nothing else depends on the clock.
        limit: evaluations of gradients and energies, of all phases, chains and processes, that the
            call may take; None for any number.
        spent: how many it has taken.
        points: the latest points (n, *event) near to the target, in the variables of the chains,
            with log weights (n) in nats, or None for even ones; None where there are none yet. What
            a call that ends early returns, if it has no more.
        rough: whether these points do not follow the target even roughly.
        log_z: the latest estimate of log Z, likewise.
        why: why the call ends early; empty where it does not.
    """

    show: bool | None = False
    limit: float | None = None
    spent: float = 0.0
    points: tuple[Tensor, Tensor | None] | None = None
    rough: bool = True
    log_z: Estimate | None = None
    why: str = ""
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, progress: Progress | bool | None) -> Progress:
        """The same, or that of a call that only says whether to show a bar."""
        return progress if isinstance(progress, Progress) else cls(progress)

    def bar(self, label: str, total: float, **options: Any) -> Any:
        """A bar of one phase, for a `with` statement."""
        shown = sys.stderr.isatty() if self.show is None else self.show
        left = BAR_DELAY - (time.monotonic() - self.started) if self.show is None else 0.0
        return tqdm(
            total=total,
            desc=label,
            disable=not shown or parallel.rank() > 0,
            delay=max(left, 0.0),
            leave=False,
            mininterval=0.2,
            **options,
        )

    def end(self, by: BaseException, *, nothing: bool = False) -> None:
        """Notes why the call ends early. Raises that again where nothing is there to return, and
        where one of several processes is interrupted: the others wait for it."""
        self.why = self.why or str(by) or INTERRUPTED
        if nothing or (isinstance(by, KeyboardInterrupt) and parallel.size() > 1):
            raise by

    def keep(self, x: Tensor, log_weights: Tensor | None = None, *, rough: bool = False) -> None:
        """Keeps the latest points; no rough ones in place of others."""
        if len(x) and (self.rough or not rough):
            self.points, self.rough = (x, log_weights), rough

    def reason(self, found: str) -> str:
        """A reason not to trust what a call that ended early returns."""
        cure = "the same call again" if self.why == INTERRUPTED else "a larger max_gradients="
        return f"{self.why}: {found}; try {cure}"

    def spend(self, evaluations: float) -> None:
        """Counts evaluations that are about to be made. Raises `Stopped` where they are too
        many, or where the call has been ended; all processes must count the same."""
        if self.why:
            raise Stopped(self.why)
        if self.limit is not None and self.spent + evaluations > self.limit:
            raise Stopped(f"stopped at max_gradients={self.limit:.0f}")
        self.spent += evaluations
