"""The control branch: what its zero weights mean, and that it is a convolution over the concatenated condition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from diffbody_ref.models.control import ControlBranch, condition_latents, denoise
from diffbody_ref.models.unet import build_unet

PARTS = 5
CONDITION = 4 + 3 + PARTS + 1


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=8,
        norm_num_groups=4,
        use_linear_projection=True,
    ).eval()


def branch_with_open_outputs(unet: UNet2DConditionModel) -> ControlBranch:
    """Output convolutions are zero at the start; open them so that residuals can be compared."""
    branch = ControlBranch.from_unet(unet, PARTS).eval()
    torch.manual_seed(1)
    for convolution in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
        torch.nn.init.normal_(convolution.weight, std=0.3)
    return branch


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "z": torch.randn(2, 4, 8, 8, generator=generator),
        "t": torch.tensor([3, 700]),
        "text": torch.randn(2, 5, 8, generator=generator),
        "condition": torch.randn(2, CONDITION, 8, 8, generator=generator),
    }


def residuals(branch: ControlNetModel, inputs: dict[str, torch.Tensor], condition: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        down, mid = branch(inputs["z"], inputs["t"], inputs["text"], controlnet_cond=condition, return_dict=False)
    return [*down, mid]


def test_zero_output_convolutions_leave_the_unet_alone(inputs: dict[str, torch.Tensor]) -> None:
    unet = tiny_unet()
    branch = ControlBranch.from_unet(unet, PARTS).eval()
    with torch.no_grad():
        ours = denoise(unet, branch, inputs["z"], inputs["t"], inputs["text"], inputs["condition"])
        alone = unet(inputs["z"], inputs["t"], inputs["text"]).sample
    assert torch.equal(ours, alone)  # zeros are added: exact


def test_with_zero_extra_channels_it_is_the_network_without_them(inputs: dict[str, torch.Tensor]) -> None:
    """Pose and attention weights at zero: the branch that has only z_t and z_r (DiffBIR) computes the same."""
    unet = tiny_unet()
    full, diffbir = branch_with_open_outputs(unet), branch_with_open_outputs(unet)
    torch.manual_seed(3)
    z_r_weights = torch.randn_like(full.controlnet_cond_embedding.weight[:, :4])
    with torch.no_grad():
        full.controlnet_cond_embedding.weight[:, :4] = z_r_weights
    diffbir.controlnet_cond_embedding = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    diffbir.controlnet_cond_embedding.weight = torch.nn.Parameter(z_r_weights)
    for ours, theirs in zip(
        residuals(full, inputs, inputs["condition"]),
        residuals(diffbir, inputs, inputs["condition"][:, :4]),
        strict=True,
    ):
        # Terms of exact zeros are added, in another order of float32 sums through a dozen layers.
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_equals_one_convolution_over_the_concatenation(inputs: dict[str, torch.Tensor]) -> None:
    branch = branch_with_open_outputs(tiny_unet()).double()
    torch.nn.init.normal_(branch.controlnet_cond_embedding.weight)
    z, condition = inputs["z"].double(), inputs["condition"].double()
    joined = torch.nn.functional.conv2d(
        torch.cat([z, condition], dim=1),
        torch.cat([branch.conv_in.weight, branch.controlnet_cond_embedding.weight], dim=1),
        branch.conv_in.bias,
        padding=1,
    )
    summed = branch.conv_in(z) + branch.controlnet_cond_embedding(condition)
    torch.testing.assert_close(summed, joined, atol=1e-12, rtol=1e-12)  # the same float64 sums, reordered
    double = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    seen: list[torch.Tensor] = []
    branch.down_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    residuals(branch, double, condition)
    torch.testing.assert_close(seen[0], joined, atol=1e-12, rtol=1e-12)  # and that is what the blocks are given


def test_the_encoder_is_the_unets() -> None:
    unet = tiny_unet()
    theirs, ours = unet.state_dict(), ControlBranch.from_unet(unet, PARTS).state_dict()
    copied = [name for name in theirs if name.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block"))]
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)
    assert ours["controlnet_cond_embedding.weight"].shape == (8, CONDITION, 3, 3)
    assert not ours["controlnet_cond_embedding.weight"].any()


def test_a_unet_that_the_branch_cannot_copy_is_refused() -> None:
    unet = tiny_unet()
    unet.register_to_config(act_fn="gelu")
    with pytest.raises(ValueError, match="act_fn is 'gelu'"):
        ControlBranch.from_unet(unet, PARTS)


def test_save_and_load(tmp_path: Path, inputs: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture) -> None:
    branch = branch_with_open_outputs(tiny_unet())
    branch.save_pretrained(tmp_path)
    again = ControlBranch.from_pretrained(tmp_path)
    assert "ignored" not in caplog.text
    for ours, theirs in zip(
        residuals(branch, inputs, inputs["condition"]), residuals(again, inputs, inputs["condition"]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_sd21_has_the_sizes_of_the_public_checkpoint() -> None:
    with torch.device("meta"):
        unet = build_unet("sd21")
        branch = ControlBranch(part_count=PARTS)
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724  # SD 2.1-base's U-Net
    assert len(branch.controlnet_down_blocks) + 1 == 13  # DiffBIR's residuals
    first = [branch.conv_in.weight.shape, branch.controlnet_cond_embedding.weight.shape]
    assert [tuple(shape) for shape in first] == [(320, 4, 3, 3), (320, CONDITION, 3, 3)]


def test_condition_averages_the_maps() -> None:
    z_r, pose, attention = torch.zeros(1, 4, 2, 3), torch.rand(1, 3, 8, 12), torch.rand(1, PARTS + 1, 8, 12)
    condition = condition_latents(z_r, pose, attention)
    assert condition.shape == (1, CONDITION, 2, 3)
    torch.testing.assert_close(condition[0, 4, 1, 2], pose[0, 0, 4:, 8:].mean())
    torch.testing.assert_close(condition[0, 7, 0, 0], attention[0, 0, :4, :4].mean())
