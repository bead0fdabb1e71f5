"""Equations 5 and 6: the loss, its gradient through decoder and part network, and the sampler's hook."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffbody_ref.guidance import (
    BodyGuidance,
    GuidanceConfig,
    PartFeatures,
    body_part_loss,
    guidance_gradient,
    part_features,
    predict_z0,
)
from diffbody_ref.models.parts import NANO, PartNet

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


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


def test_predict_z0_inverts_the_noising() -> None:
    z0, eps = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    z_t = 0.3**0.5 * z0 + 0.7**0.5 * eps
    torch.testing.assert_close(predict_z0(z_t, eps, 0.3), z0)


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
    _, gradient = guidance_gradient(models.decode, models.embed, z0, target)

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
    losses, gradients = guidance_gradient(models.decode, models.embed, z0, target)
    for i in range(3):
        alone = PartFeatures(target.embeddings[i : i + 1], target.visibility[i : i + 1])
        loss, gradient = guidance_gradient(models.decode, models.embed, z0[i : i + 1], alone)
        torch.testing.assert_close(loss[0], losses[i])
        torch.testing.assert_close(gradient[0], gradients[i])


def test_gradient_under_no_grad_touches_no_parameters(models: Models) -> None:
    with torch.no_grad():
        loss, gradient = guidance_gradient(models.decode, models.embed, models.latents(1), models.target(1))
    assert not loss.requires_grad
    assert not gradient.requires_grad
    assert gradient.abs().max() > 0
    assert all(p.grad is None for p in [*models.vae.parameters(), *models.parts.parameters()])


def test_stepping_along_the_gradient_lowers_the_loss(models: Models) -> None:
    reference = models.decode(models.latents(2, seed=7)).detach()
    z0 = models.latents(2)
    _, gradient = guidance_gradient(models.decode, models.embed, z0, models.target(2))
    # To first order each step lowers the loss by 1e-3.
    scale = 1e-3 / gradient.square().flatten(1).sum(dim=1)
    hook = BodyGuidance(models.parts, models.decode, reference, scale=scale)
    for step in range(4):
        z0, _ = hook(z0, 500, step)
    assert [step for step, _ in hook.history] == [0, 1, 2, 3]
    losses = torch.stack([loss for _, loss in hook.history])
    assert (losses.diff(dim=0) < 0).all()


def test_hook_is_z0_minus_scale_times_gradient(models: Models) -> None:
    z0, reference = models.latents(2), models.decode(models.latents(2, seed=7)).detach()
    loss, gradient = guidance_gradient(models.decode, models.embed, z0, models.target(2))
    guided, hook_loss = BodyGuidance(models.parts, models.decode, reference, config=GuidanceConfig(scale=3.0))(z0, 1, 0)
    torch.testing.assert_close(guided, z0 - 3.0 * gradient)
    torch.testing.assert_close(hook_loss, loss)
    per_sample = BodyGuidance(models.parts, models.decode, reference, scale=torch.tensor([0.0, 5.0]))
    guided, _ = per_sample(z0, 1, 0)
    assert torch.equal(guided[0], z0[0])
    torch.testing.assert_close(guided[1], z0[1] - 5.0 * gradient[1])


def test_scale_zero_does_nothing(models: Models) -> None:
    def decode(z0: Tensor) -> Tensor:
        raise AssertionError("decoded for nothing")

    reference, z0 = torch.rand(2, 3, 48, 24, dtype=torch.float64), models.latents(2)
    for hook in (
        BodyGuidance(models.parts, decode, reference, config=GuidanceConfig(scale=0.0)),
        BodyGuidance(models.parts, decode, reference, scale=torch.zeros(2)),
        BodyGuidance(models.parts, decode, reference, boxes=[[], []]),
    ):
        guided, loss = hook(z0, 500, 0)
        assert guided is z0
        assert loss is None
        assert hook.history == []


def test_people_are_cropped_and_averaged(models: Models) -> None:
    """Nobody, one and two people, against crops made by hand."""
    z0, reference = models.latents(3), models.decode(models.latents(3, seed=7)).detach()
    boxes = [[], [(2.0, 4.0, 20.0, 40.0)], [(0.0, 0.0, 12.0, 48.0), (11.5, -3.0, 30.0, 47.2)]]
    hook = BodyGuidance(models.parts, models.decode, reference, boxes, GuidanceConfig(scale=2.0))
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
    config = GuidanceConfig(t_start=600, t_stop=100, every=3)
    active = [(t, step) for t in (600, 599, 101, 100) for step in range(5) if config.is_active(t, step)]
    assert active == [(599, 0), (599, 3), (101, 0), (101, 3)]
    assert GuidanceConfig().is_active(999, 0)
    assert GuidanceConfig().is_active(0, 49)
    assert not GuidanceConfig(scale=0).is_active(500, 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": -1.0}, "guidance scale is -1.0"),
        ({"scale": float("nan")}, "guidance scale is nan"),
        ({"scale": float("inf")}, "guidance scale is inf"),
        ({"every": 0}, "every 0 steps; it must be at least 1"),
        ({"t_start": 100, "t_stop": 200}, "200 < t < 100"),
        ({"t_start": 2000}, "t_start <= 1001"),
    ],
)
def test_bad_config(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**kwargs)  # type: ignore[arg-type]


def test_bad_hook_arguments(models: Models) -> None:
    reference = torch.rand(1, 3, 48, 24, dtype=torch.float64)
    with pytest.raises(ValueError, match="no pixels in the picture of 24x48"):
        BodyGuidance(models.parts, models.decode, reference, [[(30, 0, 40, 10)]])
    with pytest.raises(ValueError, match="boxes are for 2 samples; the reference holds 1"):
        BodyGuidance(models.parts, models.decode, reference, [[], []])
    with pytest.raises(ValueError, match=r"guidance scale is \[nan\]"):
        BodyGuidance(models.parts, models.decode, reference, scale=torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="decoded pictures are"):
        BodyGuidance(models.parts, models.decode, torch.rand(1, 3, 64, 32, dtype=torch.float64))(
            models.latents(1), 500, 0
        )
    with pytest.raises(ValueError, match="call eval"):
        BodyGuidance(PartNet(TINY).train(), models.decode, reference)
