from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from poe.sampling.tension import sigmas_of

F64 = torch.float64


@pytest.mark.parametrize(
    ("q", "degrees", "sigmas"),
    [(2000, 2000, 0.68), (1000, 900, 2.54), (1100, 1000, 2.44), (1000, 784, 5.169)],
)
def test_sigmas_of_many_degrees_of_freedom(q: float, degrees: int, sigmas: float) -> None:
    assert sigmas_of(q, degrees) == pytest.approx(sigmas, abs=0.006)


def test_sigmas_far_out() -> None:
    """One degree of freedom: |z| itself, also beyond what a probability in double precision holds;
    and no jump where that begins."""
    for z in (5.0, 30.0, 37.0, 38.0, 100.0):
        assert sigmas_of(z**2, 1) == pytest.approx(z, rel=1e-6)
    for degrees in (5, 50):
        steps = [sigmas_of(q, degrees) for q in range(1350, 1500, 10)]
        assert all(0.05 < b - a < 0.25 for a, b in pairwise(steps))
