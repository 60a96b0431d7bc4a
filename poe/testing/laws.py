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
from poe.testing.case import _Case, _close, _require, _seeded, _Skip
from poe.testing.draws import _differentiable


def _facts(case: _Case) -> None:
    e = case.expert
    _require(
        isinstance(e.event_shape, torch.Size),
        f"event_shape is a {type(e.event_shape).__name__}, not a torch.Size",
    )
    dims = e.support.event_dim
    _require(
        dims == len(e.event_shape),
        f"the support acts on {dims} axes, events have {len(e.event_shape)}",
    )
    _require(
        e.log_z is None or isinstance(e.log_z, Estimate),
        f"log_z is {e.log_z!r}, neither None nor an Estimate",
    )
    _require(e.proper in (True, False, None), f"proper is {e.proper!r}")
    _require(e.bounded in (True, False, None), f"bounded is {e.bounded!r}")
    _require(
        case.x.shape[1:] == e.event_shape,
        f"points have shape {tuple(case.x.shape[1:])}, not {tuple(e.event_shape)}",
    )
    _require(
        sets.contains(e.support, case.x).all(), "some of its own points lie outside its support"
    )
    _require(e.flat in (True, False, None), f"flat is {e.flat!r}")
    if e.flat:
        energy = e(case.x)
        _require(
            _close(energy, energy[:1].expand_as(energy)),
            "it says that it is flat, and its energy differs from point to point",
        )


def _shapes(case: _Case) -> None:
    e, x = case.expert, case.x
    event = e.event_shape
    for batch in ((), (1,), (24,), (2, 3, 4), (0,), (2, 0)):
        points = x[0] if batch == () else x[: math.prod(batch)].reshape(*batch, *event)
        energy = e(points)
        shapes = (
            f"for x of shape {tuple(points.shape)} the energy has shape "
            f"{tuple(energy.shape)}, not {batch}"
        )
        _require(energy.shape == batch, shapes)
        _require(energy.is_floating_point(), f"the energy has dtype {energy.dtype}")
        if x.is_floating_point() and x.dtype == e.dtype:
            _require(energy.dtype == x.dtype, f"x has dtype {x.dtype}, its energy {energy.dtype}")


def _batch_invariance(case: _Case) -> None:
    e, x = case.expert, case.x
    batched = e(x)
    rows = torch.stack([e(row) for row in x])
    gap = (batched - rows).abs().max()
    _require(
        _close(batched, rows),
        f"energies of a batch differ by up to {gap:.3g} nats from those of its rows",
    )
    _require(_close(e(x.flip(0)).flip(0), batched), "energies depend on the order of the batch")
    _require(
        _close(e(x.reshape(2, -1, *e.event_shape)).reshape(-1), batched),
        "energies depend on the batch axes",
    )


def _determinism(case: _Case) -> None:
    values = []
    for seed in (1, 2):
        with _seeded(seed):
            values.append(case.expert(case.x))
            after = torch.rand(())
            torch.manual_seed(seed)
            _require(
                torch.equal(after, torch.rand(())),
                "the energy draws from the global random generator",
            )
    _require(torch.equal(*values), "two evaluations at the same points differ")


def _finite_inside(case: _Case) -> None:
    e = case.expert
    energy = e(case.x)
    _require(not energy.isnan().any(), "the energy is NaN at a point of the support")
    _require((energy != -math.inf).all(), "the energy is -inf at a point of the support")
    if e.can(Samples):
        _require((energy != math.inf).all(), "the energy is +inf at a draw")
    if sets.is_real(e.support):
        for factor in (1e2, 1e4):
            _require(
                not e(case.x * factor).isnan().any(),
                f"the energy is NaN at points {factor:g} times as far out",
            )


def _infinite_outside(case: _Case) -> None:
    e, x = case.expert, case.x
    if sets.is_real(e.support):
        raise _Skip("the support is all of R^n")
    candidates = torch.cat(
        [x + 1000, x - 1000, -x - 1] + ([x + 0.5] if x.is_floating_point() else [])
    )
    outside = candidates[~sets.contains(e.support, candidates)]
    if not len(outside):
        raise _Skip(f"no point outside {e.support!r} is known")
    energy = e(outside)
    _require(
        (energy == math.inf).all(),
        f"the energy outside the support is {energy[energy != math.inf][:1].tolist()}, not inf",
    )
    mixed = e(torch.cat([x, outside]))[: len(x)]
    _require(
        _close(mixed, e(x)), "points outside the support change the energies of others in the batch"
    )
    if not case.discrete and x.is_floating_point():
        energy, gradient = e.value_and_grad(outside)
        _require(
            (energy == math.inf).all(),
            "value_and_grad outside the support gives an energy that is not inf",
        )
        _require(not gradient.isnan().any(), "the gradient outside the support is NaN")


def _value_and_grad(case: _Case) -> None:
    x, e = _differentiable(case), case.expert
    energy, gradient = e.value_and_grad(x)
    _require(
        gradient.shape == x.shape,
        f"the gradient has shape {tuple(gradient.shape)} for x {tuple(x.shape)}",
    )
    _require(
        not (energy.requires_grad or gradient.requires_grad),
        "value_and_grad returns tensors with a graph",
    )
    _require(_close(energy, e(x).detach()), "the energy of value_and_grad differs from forward's")
    free = x.clone().requires_grad_()
    (reference,) = torch.autograd.grad(e(free).sum(), free, materialize_grads=True)
    gap = (gradient - reference).abs().max()
    _require(
        _close(gradient, reference),
        f"the gradient of value_and_grad differs by up to {gap:.3g} from autograd's",
    )
    _require(_close(e.score(x), -gradient), "the score is not minus the gradient")


def _gradient(case: _Case) -> None:
    _differentiable(case)
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
        for step in (
            1e-3,
            1e-4,
            1e-5,
            1e-6,
        ):  # one of them avoids both curvature, kinks and rounding
            with torch.no_grad():
                ends = [twin(case.transform(z + sign * step * direction)) for sign in (1, -1)]
            difference = (ends[0] - ends[1]) / (2 * step)
            agrees |= (difference - slope).abs() <= 1e-4 * (1 + slope.abs())
        worst = (difference - slope).abs().argmax()
        _require(
            agrees.float().mean() >= 0.75,  # a kink of a piecewise energy may lie next to a point
            f"along a line the gradient says {slope[worst]:.6g}, finite differences "
            f"{difference[worst]:.6g}",
        )


def _transport(case: _Case) -> None:
    e = case.expert
    if not e.can(Transport):
        raise _Skip("it is no transport")
    twin: Any = case.twin
    x = case.x.double().cpu()
    with torch.no_grad():
        z, forward = twin.to_noise(x)
        back, backward = twin.from_noise(z)
        normal = 0.5 * z.square().reshape(len(z), -1).sum(-1) + 0.5 * z[0].numel() * math.log(
            2 * math.pi
        )
        energy = twin(x)
    _require(z.shape == x.shape, f"noise has shape {tuple(z.shape)} for x {tuple(x.shape)}")
    _require(_close(back.float(), x.float()), "from_noise(to_noise(x)) is not x")
    _require(
        _close(forward.float(), -backward.float()), "the two log-determinants are not opposite"
    )
    offset = energy - (normal - forward)  # -log Z
    constant = offset.mean() if e.log_z is None else torch.tensor(-e.log_z.value)
    slack = 0.0 if e.log_z is None else 6 * e.log_z.standard_error
    gap = (offset - constant).abs().max()
    _require(
        gap <= slack + 1e-3,
        f"the energy differs by {gap:.3g} nats from that of the transported noise",
    )


def _save_and_load(case: _Case) -> None:
    e = case.expert
    for leaf in leaves(e):
        if registry.name_of(type(leaf)) is None:
            raise _Skip(f"{type(leaf).__name__} is not registered: @poe.register('a-name')")
        try:
            leaf.config()
        except TypeError as error:
            raise _Skip(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.safetensors"
        storage.save(e, path)
        loaded = storage.load(path)
    before, after = e(case.x), loaded(case.x)
    _require(
        after.dtype == before.dtype,
        f"saved with energies in {before.dtype}, loaded with {after.dtype}",
    )
    gap = (before - after).abs().max()
    _require(
        torch.equal(before, after),
        f"energies differ by up to {gap:.3g} nats after saving and loading",
    )
    _require(
        (loaded.log_z, loaded.event_shape, str(loaded)) == (e.log_z, e.event_shape, str(e)),
        "facts change in a file",
    )


def _eval_mode(case: _Case) -> None:
    e = case.fresh()
    before = e(case.x)
    parent = nn.ModuleList([e])
    parent.train()
    with _seeded(1):
        during = e(case.x)
    parent.eval()
    _require(
        torch.equal(before, during),
        "the .train() of a parent module changes its energies: lock eval mode",
    )
    _require(torch.equal(before, e(case.x)), "evaluating it in train mode changed it")


def _no_side_effects(case: _Case) -> None:
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
            _require(
                torch.is_grad_enabled() == enabled,
                "it leaves gradients switched " + ("off", "on")[not enabled],
            )
    _require(torch.equal(x, case.x), "it writes into x")
    _require(not x.requires_grad, "it leaves x requiring a gradient")
    _require(
        all(p.grad is None for p in e.parameters()),
        "value_and_grad leaves gradients in its parameters",
    )
    changed = [key for key, value in state.items() if not torch.equal(value, e.state_dict()[key])]
    _require(not changed, f"evaluating it changes its state: {', '.join(changed)}")
