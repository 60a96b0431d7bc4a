"""Files of format 1, one for each registered expert that a file can hold, load to the energies that
they had when they were written (`old_files/energies.json`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import poe
from poe import registry
from poe.io.container import recipe_text

FILES = Path(__file__).parent / "old_files"
KNOWN = json.loads((FILES / "energies.json").read_text())
CODE = {  # experts that hold code or another library's model, which no file stores
    "black-box",
    "causal",
    "denoiser",
    "function",
    "getdist",
    "jax",
    "language-model",
    "sbi-likelihood",
    "sbi-posterior",
    "sbi-ratio",
    "sklearn-classifier",
}


@pytest.mark.parametrize("name", KNOWN)
def test_an_old_file_has_its_energies(name: str) -> None:
    known, energy = KNOWN[name], poe.load(FILES / f"{name}.safetensors")
    x = torch.tensor(known["x"], dtype=torch.long if known["integer"] else energy.dtype)
    wanted = torch.tensor(known["energy"], dtype=torch.float64)
    torch.testing.assert_close(energy(x).detach().double(), wanted, rtol=1e-6, atol=1e-6)


def test_every_registered_name_has_an_old_file() -> None:
    stored = set()
    for name in KNOWN:
        recipe = json.loads(recipe_text((FILES / f"{name}.safetensors").read_bytes()))
        assert recipe["format"] == 1
        stored |= {entry["expert"] for entry in recipe["parts"] if "expert" in entry}
    ours = {point.name for point in registry.entry_points(registry.GROUP)}
    assert stored | CODE | {"mixture-made", "gaussian-mixture"} >= ours
