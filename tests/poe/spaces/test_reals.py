from __future__ import annotations

import torch

from poe.algebra import support as sets
from poe.spaces.reals import from_reals, image


def test_mixed_boxes_transform_each_coordinate_in_its_own_way() -> None:
    low = torch.tensor([0.0, -torch.inf, -torch.inf, -2.0])
    high = torch.tensor([torch.inf, 3.0, torch.inf, 5.0])
    transform = from_reals(sets.Box(low, high))
    z = torch.randn(100, 4, dtype=torch.float64)
    x = transform(z)
    assert sets.contains(sets.Box(low, high), x).all()
    jacobian = torch.func.vmap(torch.func.jacrev(transform))(z)
    assert torch.allclose(transform.log_abs_det_jacobian(z, x), torch.linalg.slogdet(jacobian)[1])
    assert torch.allclose(transform.inv(x), z)


def test_a_union_of_boxes_is_reached_from_the_box_around_it() -> None:
    left = sets.Box(torch.tensor([0.0]), torch.tensor([1.0]))
    right = sets.Box(torch.tensor([2.0]), torch.tensor([3.0]))
    around = image(sets.Union([left, right]))
    assert isinstance(around, sets.Box)
    assert (around.low.item(), around.high.item()) == (0.0, 3.0)
