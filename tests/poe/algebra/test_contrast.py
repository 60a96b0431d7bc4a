"""Contrasts: a but not b."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from poe.algebra.contrast import Contrast
from tests.poe.algebra.cases import INF, LINE, a, b, raw


def test_contrast_is_below_what_is_wanted_and_proper() -> None:
    energy = poe.contrast(a, raw, strength=2.0)
    assert isinstance(energy, Contrast)
    assert bool((energy(LINE) >= a(LINE)).all())
    assert energy.proper is True
    assert str(energy) == "poe.contrast(a, raw, strength=2)"
    assert torch.equal(poe.contrast(a, raw, strength=0)(LINE), a(LINE))
    for strength in (-1, math.nan, INF, True, "1"):
        with pytest.raises(ValueError, match="finite number >= 0"):
            poe.contrast(a, b, strength=strength)  # type: ignore[arg-type]
