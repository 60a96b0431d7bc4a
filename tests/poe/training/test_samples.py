from __future__ import annotations

import math

import pytest
import torch

import poe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": torch.zeros(10, 2)}, "at least 100 samples, got 10"),
        ({"samples": torch.full((200, 2), math.nan)}, "200 of 200 samples are not finite"),
        ({"samples": torch.randn(200, 2), "weights": torch.ones(3)}, "weights must be 200 numbers"),
        (
            {"samples": torch.rand(200, 1), "weights": -torch.ones(200)},
            "weights must be 200 numbers",
        ),
        ({"samples": torch.rand(200, 1) + 0.5, "support": (0.0, 1.0)}, "lie outside the support"),
        ({"samples": torch.rand(200, 1), "support": "box"}, "support is"),
        ({"samples": torch.rand(200, 1), "copies": 0}, "copies is a whole number"),
        (
            {"samples": torch.rand(200, 1), "weights": torch.eye(200)[0]},
            "effective number of these under their weights is 1",
        ),
        (
            {"samples": 1e200 * torch.randn(200, 2).double()},
            "200 of 200 samples are not finite in torch.float32",
        ),
        (
            {"samples": 2459000.5 + 0.1 * torch.randn(200, 1).double()},
            "where torch.float32 resolves .* subtract an offset",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poe.fit_density(**arguments)


@pytest.mark.parametrize("samples", ["abc", None, 3.0, torch.randn(200, 2, dtype=torch.complex64)])
def test_what_is_no_table_of_numbers_is_said(samples) -> None:
    with pytest.raises(TypeError, match="samples are an array of"):
        poe.fit_density(samples)


def test_columns_and_bounds_without_a_density_are_refused() -> None:
    x = torch.randn(200, 2)
    for samples, options, said in [
        (torch.cat([x, torch.ones(200, 1)], 1), {}, "number 2 of each sample is always the same"),
        (torch.cat([x, 2 * x[:, :1] + 1], 1), {}, "a linear function of the others"),
        (x, {"support": ([-9.0] * 3, [9.0] * 3)}, r"the samples' shape \(2,\)"),
        (x, {"support": (9.0, -9.0)}, "low < high"),
        (torch.randn(120, 150), {}, "150 numbers a sample need more than 120 samples"),
    ]:
        with pytest.raises(ValueError, match=said):
            poe.fit_density(samples, **options)
