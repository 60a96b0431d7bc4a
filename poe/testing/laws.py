"""Laws of evaluation: shapes, batches, supports, gradients, files, modes."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poe import registry
from poe.algebra import support as sets
from poe.algebra.capabilities import Samples, Transport
from poe.algebra.energy import Estimate
from poe.algebra.text import leaves
from poe.io import storage
from poe.testing.case import Case, Skip, close, require, seeded


def facts(case: Case) -> None:
    """What the expert states is of the right kind, and its points lie in its support."""
    e = case.expert
    require(
        isinstance(e.event_shape, torch.Size),
        f"event_shape is a {type(e.event_shape).__name__}, not a torch.Size",
    )
    dims = e.support.event_dim
    require(
        dims == len(e.event_shape),
        f"the support acts on {dims} axes, events have {len(e.event_shape)}",
    )
    require(
        e.log_z is None or isinstance(e.log_z, Estimate),
        f"log_z is {e.log_z!r}, neither None nor an Estimate",
    )
    require(e.proper in (True, False, None), f"proper is {e.proper!r}")
    require(e.bounded in (True, False, None), f"bounded is {e.bounded!r}")
    require(
        case.x.shape[1:] == e.event_shape,
        f"points have shape {tuple(case.x.shape[1:])}, not {tuple(e.event_shape)}",
    )
    require(
        sets.contains(e.support, case.x).all(), "some of its own points lie outside its support"
    )
    require(e.flat in (True, False, None), f"flat is {e.flat!r}")
    if e.flat:
        energy = e(case.x)
        require(
            close(energy, energy[:1].expand_as(energy)),
            "it says that it is flat, and its energy differs from point to point",
        )


def shapes(case: Case) -> None:
    """Energies have the batch shape of x, for every batch shape, and its dtype."""
    e, x = case.expert, case.x
    event = e.event_shape
    for batch in ((), (1,), (24,), (2, 3, 4), (0,), (2, 0)):
        points = x[0] if batch == () else x[: math.prod(batch)].reshape(*batch, *event)
        energy = e(points)
        shapes = (
            f"for x of shape {tuple(points.shape)} the energy has shape "
            f"{tuple(energy.shape)}, not {batch}"
        )
        require(energy.shape == batch, shapes)
        require(energy.is_floating_point(), f"the energy has dtype {energy.dtype}")
        if x.is_floating_point() and x.dtype == e.dtype:
            require(energy.dtype == x.dtype, f"x has dtype {x.dtype}, its energy {energy.dtype}")


def batch_invariance(case: Case) -> None:
    """The energy of a point depends neither on the batch it is in nor on its place there."""
    e, x = case.expert, case.x
    batched = e(x)
    rows = torch.stack([e(row) for row in x])
    gap = (batched - rows).abs().max()
    require(
        close(batched, rows),
        f"energies of a batch differ by up to {gap:.3g} nats from those of its rows",
    )
    require(close(e(x.flip(0)).flip(0), batched), "energies depend on the order of the batch")
    require(
        close(e(x.reshape(2, -1, *e.event_shape)).reshape(-1), batched),
        "energies depend on the batch axes",
    )


def determinism(case: Case) -> None:
    """Two evaluations agree, and leave the global random generator unchanged."""
    values = []
    for seed in (1, 2):
        with seeded(seed):
            values.append(case.expert(case.x))
            after = torch.rand(())
            torch.manual_seed(seed)
            require(
                torch.equal(after, torch.rand(())),
                "the energy draws from the global random generator",
            )
    require(torch.equal(*values), "two evaluations at the same points differ")


def finite_inside(case: Case) -> None:
    """Energies in the support are numbers, and finite at draws."""
    e = case.expert
    energy = e(case.x)
    require(not energy.isnan().any(), "the energy is NaN at a point of the support")
    require((energy != -math.inf).all(), "the energy is -inf at a point of the support")
    if e.can(Samples):
        require((energy != math.inf).all(), "the energy is +inf at a draw")
    if sets.is_real(e.support):
        for factor in (1e2, 1e4):
            require(
                not e(case.x * factor).isnan().any(),
                f"the energy is NaN at points scaled by {factor:g}",
            )


def infinite_outside(case: Case) -> None:
    """Energies outside the support are +inf, and do not affect others in the batch."""
    e, x = case.expert, case.x
    if sets.is_real(e.support):
        raise Skip("the support is all of R^n")
    candidates = torch.cat(
        [x + 1000, x - 1000, -x - 1] + ([x + 0.5] if x.is_floating_point() else [])
    )
    outside = candidates[~sets.contains(e.support, candidates)]
    if not len(outside):
        raise Skip(f"no point outside {e.support!r} is known")
    energy = e(outside)
    require(
        (energy == math.inf).all(),
        f"the energy outside the support is {energy[energy != math.inf][:1].tolist()}, not inf",
    )
    mixed = e(torch.cat([x, outside]))[: len(x)]
    require(
        close(mixed, e(x)), "points outside the support change the energies of others in the batch"
    )
    if not case.discrete and x.is_floating_point():
        energy, gradient = e.value_and_grad(outside)
        require(
            (energy == math.inf).all(),
            "value_and_grad outside the support gives an energy that is not inf",
        )
        require(not gradient.isnan().any(), "the gradient outside the support is NaN")


def value_and_grad(case: Case) -> None:
    """Energy, gradient and score agree with `forward` and autograd."""
    x, e = case.differentiable(), case.expert
    energy, gradient = e.value_and_grad(x)
    require(
        gradient.shape == x.shape,
        f"the gradient has shape {tuple(gradient.shape)} for x {tuple(x.shape)}",
    )
    require(
        not (energy.requires_grad or gradient.requires_grad),
        "value_and_grad returns tensors with a graph",
    )
    require(close(energy, e(x).detach()), "the energy of value_and_grad differs from forward's")
    free = x.clone().requires_grad_()
    (reference,) = torch.autograd.grad(e(free).sum(), free, materialize_grads=True)
    gap = (gradient - reference).abs().max()
    require(
        close(gradient, reference),
        f"the gradient of value_and_grad differs by up to {gap:.3g} from autograd's",
    )
    require(close(e.score(x), -gradient), "the score is not minus the gradient")


def gradient(case: Case) -> None:
    """The gradient agrees with finite differences in float64, along random lines."""
    case.differentiable()
    twin = case.twin
    z = case.free(case.x[:8]).detach().requires_grad_()
    x = case.transform(z)
    (gradient,) = torch.autograd.grad(x, z, twin.value_and_grad(x.detach())[1])
    g = torch.Generator().manual_seed(case.seed)
    for _ in range(4):
        direction = torch.randn(z.shape, generator=g, dtype=torch.float64).to(z.device)
        slope = (gradient * direction).reshape(len(z), -1).sum(-1)
        agrees = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        difference = slope
        # one of them avoids both curvature, kinks and rounding
        for step in (
            1e-3,
            1e-4,
            1e-5,
            1e-6,
        ):
            with torch.no_grad():
                ends = [twin(case.transform(z + sign * step * direction)) for sign in (1, -1)]
            difference = (ends[0] - ends[1]) / (2 * step)
            agrees |= (difference - slope).abs() <= 1e-4 * (1 + slope.abs())
        worst = (difference - slope).abs().argmax()
        require(
            agrees.float().mean() >= 0.75,  # a kink of a piecewise energy may lie next to a point
            f"along a line the gradient says {slope[worst]:.6g}, finite differences "
            f"{difference[worst]:.6g}",
        )


def transport(case: Case) -> None:
    """`to_noise` and `from_noise` are inverse to each other and give the energy."""
    e = case.expert
    if not e.can(Transport):
        raise Skip("it is not a transport")
    twin: Any = case.twin
    x = case.x.double().cpu()
    with torch.no_grad():
        z, forward = twin.to_noise(x)
        back, backward = twin.from_noise(z)
        normal = 0.5 * z.square().reshape(len(z), -1).sum(-1) + 0.5 * z[0].numel() * math.log(
            2 * math.pi
        )
        energy = twin(x)
    require(z.shape == x.shape, f"noise has shape {tuple(z.shape)} for x {tuple(x.shape)}")
    require(close(back.float(), x.float()), "from_noise(to_noise(x)) is not x")
    require(close(forward.float(), -backward.float()), "the two log-determinants are not opposite")
    offset = energy - (normal - forward)  # -log Z
    constant = offset.mean() if e.log_z is None else torch.tensor(-e.log_z.value)
    slack = 0.0 if e.log_z is None else 6 * e.log_z.standard_error
    gap = (offset - constant).abs().max()
    require(
        gap <= slack + 1e-3,
        f"the energy differs by {gap:.3g} nats from that of the transported noise",
    )


def save_and_load(case: Case) -> None:
    """A saved and loaded expert has bit-equal energies and the same facts."""
    e = case.expert
    for leaf in leaves(e):
        if registry.name_of(type(leaf)) is None:
            raise Skip(f"{type(leaf).__name__} is not registered: @poe.register('a-name')")
        try:
            leaf.config()
        except TypeError as error:
            raise Skip(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.safetensors"
        storage.save(e, path)
        loaded = storage.load(path)
    before, after = e(case.x), loaded(case.x)
    require(
        after.dtype == before.dtype,
        f"saved with energies in {before.dtype}, loaded with {after.dtype}",
    )
    gap = (before - after).abs().max()
    require(
        torch.equal(before, after),
        f"energies differ by up to {gap:.3g} nats after saving and loading",
    )
    require(
        (loaded.log_z, loaded.event_shape, str(loaded)) == (e.log_z, e.event_shape, str(e)),
        "facts change in a file",
    )


def eval_mode(case: Case) -> None:
    """Train mode of a parent module does not change energies."""
    e = case.fresh()
    before = e(case.x)
    parent = nn.ModuleList([e])
    parent.train()
    with seeded(1):
        during = e(case.x)
    parent.eval()
    require(
        torch.equal(before, during),
        "the .train() of a parent module changes its energies: lock eval mode",
    )
    require(torch.equal(before, e(case.x)), "evaluating it in train mode changed it")


def no_side_effects(case: Case) -> None:
    """Evaluation changes neither x, parameters, state nor the gradient mode."""
    e = case.fresh()
    x = case.x.clone()
    state = {
        key: value.clone() for key, value in e.state_dict().items() if isinstance(value, Tensor)
    }
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            e(x)
            if not case.discrete and x.is_floating_point():
                with contextlib.suppress(TypeError):  # an expert without a gradient
                    e.value_and_grad(x)
            require(
                torch.is_grad_enabled() == enabled,
                "it leaves gradients switched " + ("off", "on")[not enabled],
            )
    require(torch.equal(x, case.x), "it writes into x")
    require(not x.requires_grad, "it leaves x requiring a gradient")
    require(
        all(p.grad is None for p in e.parameters()),
        "value_and_grad leaves gradients in its parameters",
    )
    changed = [key for key, value in state.items() if not torch.equal(value, e.state_dict()[key])]
    require(not changed, f"evaluating it changes its state: {', '.join(changed)}")
