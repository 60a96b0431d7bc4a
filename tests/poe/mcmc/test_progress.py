from __future__ import annotations

import sys
import time

import pytest
import torch

from poe.kernels import Langevin
from poe.mcmc.progress import BAR_DELAY, Progress, Stopped
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss


def test_a_bar_shows_by_itself_on_a_terminal_once_a_call_takes_long(capsys, monkeypatch) -> None:
    def shown(progress: Progress) -> bool:
        with progress.bar("phase", 10) as bar:
            for _ in range(10):
                bar.update()
            bar.refresh()
        return "phase" in capsys.readouterr().err

    old = time.monotonic() - 2 * BAR_DELAY
    assert shown(Progress(True)) and not shown(Progress(False))
    assert not shown(Progress(None, started=old))  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert shown(Progress(None, started=old)) and not shown(Progress(False, started=old))
    assert Progress(None).bar("phase", 10).delay == pytest.approx(BAR_DELAY, abs=0.5)


def test_no_more_is_spent_than_the_limit() -> None:
    progress = Progress(limit=100)
    progress.spend(60)
    with pytest.raises(Stopped, match="stopped at max_gradients=100"):
        progress.spend(41)
    progress.spend(40)
    assert progress.spent == 100
    progress.end(Stopped("enough"))
    with pytest.raises(Stopped, match="enough"):
        progress.spend(0)
    with pytest.raises(KeyboardInterrupt):
        Progress().end(KeyboardInterrupt(), nothing=True)


@pytest.mark.parametrize("limit", [100, 2_000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_a_run_ends_with_what_there_is(limit: float) -> None:
    target, x = Gauss(0.0), torch.zeros(8, 2)

    def stopped():
        progress = Progress(limit=limit)
        options = {"draws": 5_000, "warmup": 100, "generators": streams(0, 2, x.device)}
        return run(Langevin(), target, x, progress=progress, **options), progress

    (trace, progress), (again, _) = stopped(), stopped()
    assert trace.partial and torch.equal(trace.x, again.x)
    assert progress.spent <= limit and progress.why == f"stopped at max_gradients={limit}"
    assert 1 <= trace.x.shape[1] < 5_000 and (trace.x.shape[1] > 1) == (limit > 800)
    assert trace.counts.gradients <= 1.02 * limit
    assert torch.equal(trace.energy, target(trace.x))
