"""U-Nets of diffusers: clean points against those that its own schedulers compute."""

from __future__ import annotations

import warnings

import pytest
import torch

import poe
from experts import Denoiser, NoiseSchedule
from experts.diffusers import from_diffusers
from poe.algebra.capabilities import Conditional

pytestmark = pytest.mark.slow  # importing diffusers takes seconds


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers")
        # loaded when first asked for
        _ = (module.UNet2DModel, module.DDIMScheduler, module.FlowMatchEulerDiscreteScheduler)
    return module


def unet(diffusers, **changes):
    blocks = {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "block_out_channels": (8, 16),
    }
    return diffusers.UNet2DModel(
        8, 1, 1, layers_per_block=1, norm_num_groups=4, **blocks, **changes
    ).eval()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_clean_point_is_that_of_the_scheduler(diffusers, prediction: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(1000)
    model = unet(diffusers)
    e = poe.as_energy(model, scheduler=scheduler, name="pictures")
    assert e.event_shape == (1, 8, 8) and e.schedule.kind == "preserving"
    for t in (10, 300, 700):
        alpha = scheduler.alphas_cumprod[t].double().sqrt()
        sigma = float((1 / alpha**2 - 1).sqrt())
        x = (1 + sigma) * torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            u = alpha.float() * x
            wanted = scheduler.step(model(u, t).sample, t, u).pred_original_sample
            found = e.at(sigma).denoised(x)
        assert torch.allclose(found, wanted, atol=1e-4 * (1 + sigma))
        assert not torch.allclose(e.at(1.2 * sigma).denoised(x), wanted, atol=1e-3 * (1 + sigma))


def test_flow_matching_steps_to_the_clean_point(diffusers) -> None:
    scheduler, model = diffusers.FlowMatchEulerDiscreteScheduler(), unet(diffusers)
    e = from_diffusers(model, scheduler=scheduler)
    scheduler.set_timesteps(sigmas=[0.6])  # one step, from t = 0.6 to 0
    sigma, x = 0.6 / 0.4, torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        out = model(0.4 * x, scheduler.timesteps[0]).sample
        wanted = scheduler.step(out, scheduler.timesteps[0], 0.4 * x).prev_sample
        assert torch.allclose(e.at(sigma).denoised(x), wanted, atol=1e-5)


def test_classes_are_contexts_and_what_is_unknown_is_refused(diffusers) -> None:
    scheduler, x = diffusers.DDPMScheduler(), torch.randn(3, 1, 8, 8)
    model = unet(diffusers, num_class_embeds=4)
    e = from_diffusers(model, scheduler=scheduler, sigma=1.0)
    assert isinstance(e, Denoiser) and e.can(Conditional)
    sample = model(
        x / 2**0.5, torch.full((3,), e.schedule.time(1.0)), class_labels=torch.full((3,), 2)
    ).sample
    assert torch.allclose(e.given(2).noise(x), sample, atol=1e-5)
    assert not torch.allclose(e.given(3).noise(x), sample, atol=1e-3)
    with pytest.raises(
        ValueError,
        match="EDMEulerScheduler states the prediction 'epsilon'.*wrap the model by hand",
    ):
        from_diffusers(model, scheduler=diffusers.EDMEulerScheduler())
    table = torch.tensor([0.9, 0.5, 0.0])
    assert NoiseSchedule.discrete(table[table > 0]).sigma_range[1] == pytest.approx(1.0)
