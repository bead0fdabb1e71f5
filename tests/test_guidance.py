"""Equations 5 and 6: the loss, its gradient through decoder and part network, and the sampler's hook."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffbody_ref.guidance import (
    BodyGuidance,
    PartFeatures,
    body_part_loss,
    guidance_gradient,
    part_features,
)
from diffbody_ref.models.parts import NANO, PartNet
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.samplers import NoiseProcess, predict_z0, schedule_of

TINY = dataclasses.replace(
    NANO,
    input_height=64,
    input_width=32,
    embedding_dim=8,
    stem_width=4,
    branch_widths=(4, 8, 12, 16),
    head_planes=(2, 2, 2, 2),
)


class Models:
    """A tiny decoder (factor 2) and part network in float64, where finite differences are sharp."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
        self.vae.double().eval()
        self.parts = PartNet(TINY).double().eval()
        # Decided masks, so that some parts are visible and some are not.
        with torch.no_grad():
            self.parts.pixel_classifier.classifier.weight.normal_(std=0.5)

    def decode(self, z0: Tensor) -> Tensor:
        return self.vae.decode(z0).sample / 2 + 0.5

    def embed(self, images: Tensor) -> PartFeatures:
        return part_features(self.parts, images)

    def latents(self, count: int, seed: int = 0) -> Tensor:
        return torch.randn(count, 4, 24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def target(self, count: int) -> PartFeatures:
        with torch.no_grad():
            return self.embed(self.decode(self.latents(count, seed=7)))

    def gradient(self, z0: Tensor, target: PartFeatures) -> tuple[Tensor, Tensor]:
        """`guidance_gradient` of one person a sample."""
        return guidance_gradient(self.decode, self.embed, z0, target, torch.arange(len(z0)))

    def hook(self, reference: Tensor, scale: float) -> BodyGuidance:
        """Each picture is one person."""
        boxes = [[(0.0, 0.0, 24.0, 48.0)]] * len(reference)
        return BodyGuidance(self.parts, self.decode, reference, boxes, RestoreOptions(body_guidance_scale=scale))


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


def test_predict_z0_inverts_the_noising() -> None:
    z0, eps = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    alphas = (0.3, *np.linspace(0.29, 0.01, 999).tolist())
    schedule = schedule_of("ddpm", [0], NoiseProcess(alphas))
    z_t = 0.3**0.5 * z0 + 0.7**0.5 * eps
    torch.testing.assert_close(predict_z0(schedule, 0, z_t, eps), z0)


def test_loss_by_hand() -> None:
    ours = PartFeatures(torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]]), torch.zeros(1, 3))
    target = PartFeatures(torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]), torch.tensor([[1.0, 0.5, 0.0]]))
    # Distances 0, 1 - √½ and 1, of which the last is not visible in the target.
    expected = (1.0 * 0 + 0.5 * (1 - 0.5**0.5)) / 1.5
    # The norms' 1e-6 shifts a cosine by about as much.
    assert body_part_loss(ours, target).item() == pytest.approx(expected, abs=2e-6)


def test_nothing_visible_is_zero_loss_and_gradient() -> None:
    embeddings = torch.zeros(2, 5, 8, requires_grad=True)
    target = PartFeatures(torch.rand(2, 5, 8), torch.zeros(2, 5))
    loss = body_part_loss(PartFeatures(embeddings, target.visibility), target)
    (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    assert torch.equal(loss, torch.zeros(2))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_dead_embedding_has_a_finite_gradient() -> None:
    embeddings = torch.zeros(1, 5, 8, requires_grad=True)
    target = PartFeatures(torch.rand(1, 5, 8), torch.ones(1, 5))
    loss = body_part_loss(PartFeatures(embeddings, target.visibility), target)
    assert torch.autograd.grad(loss.sum(), embeddings)[0].isfinite().all()


def test_gradient_against_finite_differences(models: Models) -> None:
    z0, target = models.latents(2), models.target(2)
    assert 0 < target.visibility.mean() < 1
    _, gradient = models.gradient(z0, target)

    def loss(z: Tensor) -> float:
        with torch.no_grad():
            return body_part_loss(models.embed(models.decode(z)), target).sum().item()

    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        direction = torch.randn(z0.shape, dtype=torch.float64, generator=generator)
        step = 1e-6
        slope = (loss(z0 + step * direction) - loss(z0 - step * direction)) / (2 * step)
        # Central differences err by O(step²) and by 1e-16/step = 1e-10; ReLU kinks between the points add some.
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_batch_equals_samples_alone(models: Models) -> None:
    z0, target = models.latents(3), models.target(3)
    losses, gradients = models.gradient(z0, target)
    for i in range(3):
        alone = PartFeatures(target.embeddings[i : i + 1], target.visibility[i : i + 1])
        loss, gradient = models.gradient(z0[i : i + 1], alone)
        torch.testing.assert_close(loss[0], losses[i])
        torch.testing.assert_close(gradient[0], gradients[i])


def test_gradient_under_no_grad_touches_no_parameters(models: Models) -> None:
    with torch.no_grad():
        loss, gradient = models.gradient(models.latents(1), models.target(1))
    assert not loss.requires_grad
    assert not gradient.requires_grad
    assert gradient.abs().max() > 0
    assert all(p.grad is None for p in [*models.vae.parameters(), *models.parts.parameters()])


def test_stepping_along_the_gradient_lowers_the_loss(models: Models) -> None:
    reference = models.decode(models.latents(2, seed=7)).detach()
    z0 = models.latents(2)
    _, gradient = models.gradient(z0, models.target(2))
    # To first order each step lowers the sum of the losses by 1e-3.
    hook = models.hook(reference, 1e-3 / float(gradient.square().sum()))
    losses = []
    for step in range(4):
        z0, loss = hook(z0, 500, step)
        assert loss is not None
        losses.append(loss.sum())
    assert (torch.stack(losses).diff() < 0).all()


def test_hook_is_z0_minus_scale_times_gradient(models: Models) -> None:
    z0, reference = models.latents(2), models.decode(models.latents(2, seed=7)).detach()
    loss, gradient = models.gradient(z0, models.target(2))
    guided, hook_loss = models.hook(reference, 3.0)(z0, 1, 0)
    torch.testing.assert_close(guided, z0 - 3.0 * gradient)
    torch.testing.assert_close(hook_loss, loss)


def test_scale_zero_does_nothing(models: Models) -> None:
    def decode(z0: Tensor) -> Tensor:
        raise AssertionError("decoded for nothing")

    reference, z0 = torch.rand(2, 3, 48, 24, dtype=torch.float64), models.latents(2)
    one_each = [[(0.0, 0.0, 24.0, 48.0)]] * 2
    for hook in (
        BodyGuidance(models.parts, decode, reference, one_each, RestoreOptions(body_guidance_scale=0.0)),
        BodyGuidance(models.parts, decode, reference, [[], []], RestoreOptions(body_guidance_scale=1.0)),
    ):
        guided, loss = hook(z0, 500, 0)
        assert guided is z0
        assert loss is None


def test_people_are_cropped_and_averaged(models: Models) -> None:
    """Nobody, one and two people, against crops made by hand."""
    z0, reference = models.latents(3), models.decode(models.latents(3, seed=7)).detach()
    boxes = [[], [(2.0, 4.0, 20.0, 40.0)], [(0.0, 0.0, 12.0, 48.0), (11.5, -3.0, 30.0, 47.2)]]
    hook = BodyGuidance(models.parts, models.decode, reference, boxes, RestoreOptions(body_guidance_scale=2.0))
    guided, loss = hook(z0, 500, 0)
    assert loss is not None
    assert torch.equal(guided[0], z0[0])
    assert loss[0] == 0

    z = z0.clone().requires_grad_(True)
    pictures = models.decode(z)

    def crop_loss(sample: int, rows: slice, columns: slice) -> Tensor:
        ours, theirs = (models.embed(p[sample : sample + 1, :, rows, columns]) for p in (pictures, reference))
        return body_part_loss(ours, theirs)[0]

    one = crop_loss(1, slice(4, 40), slice(2, 20))
    two = (crop_loss(2, slice(0, 48), slice(0, 12)) + crop_loss(2, slice(0, 48), slice(11, 24))) / 2
    (gradient,) = torch.autograd.grad(one + two, z)
    torch.testing.assert_close(loss[1:], torch.stack([one, two]).detach())
    torch.testing.assert_close(guided, z0 - 2.0 * gradient)


def test_when_it_is_active() -> None:
    options = RestoreOptions(body_guidance_start=600, body_guidance_stop=100, body_guidance_every=3)
    active = [(t, step) for t in (600, 599, 101, 100) for step in range(5) if options.guides(t, step)]
    assert active == [(599, 0), (599, 3), (101, 0), (101, 3)]
    assert RestoreOptions().guides(999, 0)
    assert RestoreOptions().guides(0, 49)
    assert not RestoreOptions(body_guidance_scale=0).guides(500, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body_guidance_scale": -1.0}, "body_guidance_scale must be in 0..1,000,000, got -1.0"),
        ({"body_guidance_scale": float("nan")}, "got nan"),
        ({"body_guidance_scale": float("inf")}, "got inf"),
        ({"body_guidance_every": 0}, "body_guidance_every must be at least 1, got 0"),
        ({"body_guidance_start": 100, "body_guidance_stop": 200}, "got stop 200 and start 100"),
        ({"body_guidance_start": 2000}, "start <= 1001"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RestoreOptions(**options)


def test_bad_hook_arguments(models: Models) -> None:
    reference, options = torch.rand(1, 3, 48, 24, dtype=torch.float64), RestoreOptions(body_guidance_scale=1.0)
    with pytest.raises(ValueError, match="no pixels in the picture of 24x48"):
        BodyGuidance(models.parts, models.decode, reference, [[(30, 0, 40, 10)]], options)
    with pytest.raises(ValueError, match="boxes are for 2 samples; the reference holds 1"):
        BodyGuidance(models.parts, models.decode, reference, [[], []], options)
    with pytest.raises(ValueError, match="decoded pictures are"):
        models.hook(torch.rand(1, 3, 64, 32, dtype=torch.float64), 1.0)(models.latents(1), 500, 0)
    with pytest.raises(ValueError, match="call eval"):
        BodyGuidance(PartNet(TINY).train(), models.decode, reference, [[]], options)
