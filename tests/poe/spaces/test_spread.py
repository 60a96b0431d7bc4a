"""The spread of noise in compositions."""

from __future__ import annotations

import math

import pytest

from poe.spaces.spread import spread
from tests.poe.smc.noised import EVERY, FIRST, LAST
from tests.poe.targets import Gauss


def test_spread_of_noise_of_a_composition():
    assert spread(EVERY.at(0.5), 0.5) == pytest.approx(0.5)
    assert spread((EVERY & FIRST).at(0.5), 0.5) == pytest.approx(0.5 / math.sqrt(2))
    assert spread((FIRST & LAST / EVERY).at(0.5), 0.5) == pytest.approx(0.5)
    assert spread((FIRST - LAST).at(2.0), 2.0) == pytest.approx(2.0)
    assert spread((FIRST | LAST).at(2.0), 2.0) == pytest.approx(2.0)
    assert spread((EVERY / FIRST).at(0.5), 0.5) is None
    assert spread(Gauss(0.0), 0.5) is None
