"""SwinIR: sizes, DiffBIR's parameter names, window attention and its shift mask against naive dense ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffbody_ref.models.swinir import (
    MASKED,
    NANO,
    SD21,
    SwinIR,
    SwinIRConfig,
    WindowAttention,
    from_windows,
    relative_positions,
    shift_mask,
    to_windows,
)

TINY = SwinIRConfig(unshuffle=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_feat=4)
# What nano has besides: pixels by one convolution, residual convolutions.
DIRECT = replace(TINY, unshuffle=4, upsampler="pixelshuffledirect", refine_blocks=2, global_residual=True)


@pytest.mark.parametrize("config", [TINY, DIRECT])
@pytest.mark.parametrize(("height", "width"), [(16, 8), (17, 31), (3, 5), (1, 1), (40, 24)])
def test_every_size_comes_back(height: int, width: int, config: SwinIRConfig) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        assert SwinIR(config)(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_parameters_are_those_of_diffbirs_checkpoint() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in SwinIR(SD21).named_parameters()}
    assert shapes["conv_first.1.weight"] == (180, 192, 3, 3)
    assert shapes["patch_embed.norm.weight"] == (180,)
    assert shapes["layers.7.residual_group.blocks.5.attn.relative_position_bias_table"] == (225, 6)
    assert shapes["layers.0.residual_group.blocks.0.attn.qkv.weight"] == (540, 180)
    assert shapes["layers.0.residual_group.blocks.0.mlp.fc1.weight"] == (360, 180)
    assert shapes["layers.3.conv.weight"] == (180, 180, 3, 3)
    assert shapes["conv_before_upsample.0.weight"] == (64, 180, 3, 3)
    assert shapes["conv_last.weight"] == (3, 64, 3, 3)
    assert {"conv_up1.weight", "conv_up2.weight", "conv_up3.weight", "conv_hr.weight", "norm.weight"} <= shapes.keys()
    assert "conv_up4.weight" not in shapes
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (660, 15_792_587)  # the checkpoint's


def naive_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Pairs that may not attend: cells whose places before the shift were not neighbours in one window's span.

    Independent of the code's regions: roll the true coordinates and compare distances.
    """
    rows, columns = np.mgrid[:height, :width]
    before = [np.roll(c, (-shift, -shift), (0, 1)) for c in (rows, columns)]
    tiles = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            y, x = (c[top : top + window, left : left + window].ravel() for c in before)
            apart = (np.abs(y[:, None] - y[None]) >= window) | (np.abs(x[:, None] - x[None]) >= window)
            tiles.append(np.where(apart, MASKED, 0.0))
    return np.stack(tiles)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (12, 20)])
def test_shift_mask_separates_what_was_not_adjacent(height: int, width: int) -> None:
    mask = shift_mask(height, width, 4, 2, torch.zeros(1))
    assert np.array_equal(mask.numpy(), naive_mask(height, width, 4, 2).astype(np.float32))


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_is_dense_attention_with_a_bias(masked: bool) -> None:
    """Two pictures of three windows, one window and one head at a time."""
    torch.manual_seed(1)
    layer, x = WindowAttention(8, 4, 2).double(), torch.randn(6, 16, 8, dtype=torch.float64)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    mask = torch.randn(3, 16, 16, dtype=torch.float64) if masked else None
    q, k, v = layer.qkv(x).view(6, 16, 3, 2, 4).unbind(2)
    bias = layer.relative_position_bias_table[relative_positions(4)]
    expected = torch.empty(6, 16, 2, 4, dtype=torch.float64)
    for window in range(6):
        for head in range(2):
            logits = q[window, :, head] @ k[window, :, head].T / 2.0 + bias[..., head]  # √d = 2
            if mask is not None:
                logits = logits + mask[window % 3]
            expected[window, :, head] = logits.softmax(-1) @ v[window, :, head]
    # The same sums in another order, in float64.
    torch.testing.assert_close(layer(x, mask), layer.proj(expected.flatten(2)), rtol=1e-12, atol=1e-12)


def test_padding_mirrors_at_the_bottom_and_right() -> None:
    torch.manual_seed(4)
    model, x = SwinIR(TINY).eval(), torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        by_hand = model(torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, 3), (0, 6)), mode="reflect")))
        assert torch.equal(model(x), by_hand[..., :13, :18])


@pytest.mark.parametrize("config", [TINY, DIRECT])
def test_one_exported_graph_serves_every_size(config: SwinIRConfig) -> None:
    """The shift mask is computed from the sizes in the graph, not baked in for the traced one."""
    torch.manual_seed(5)
    model, multiple = SwinIR(config).eval(), config.unshuffle * config.window_size
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # a fresh residual network is the identity, which any graph computes
    sizes = {
        0: torch.export.Dim("b", max=8),
        2: multiple * torch.export.Dim("h", max=16),
        3: multiple * torch.export.Dim("w", max=16),
    }
    example = torch.rand(2, 3, 2 * multiple, 3 * multiple)
    exported = torch.export.export(model, (example,), dynamic_shapes=(sizes,)).module()
    x = torch.rand(3, 3, 5 * multiple, 4 * multiple)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), atol=1e-6, rtol=0)  # float32, values about 1


def test_relative_positions_depend_on_the_offset_alone() -> None:
    index = relative_positions(3).view(3, 3, 3, 3)
    assert index[0, 0, 1, 1] == index[1, 1, 2, 2]
    assert index[0, 0, 1, 1] != index[1, 1, 0, 0]
    assert len(index.unique()) == 25  # (2·3 − 1)²


def test_windows_and_back() -> None:
    x = torch.randn(2, 8, 12, 3)
    assert torch.equal(from_windows(to_windows(x, 4), 8, 12, 4), x)
    assert torch.equal(to_windows(x, 4)[1].view(4, 4, 3), x[0, :4, 4:8])  # second window: first row of windows


def test_a_far_pixel_does_not_reach_beyond_the_receptive_field() -> None:
    """Two Swin layers see a window and its shifted neighbours, so a change at one end leaves the other end alone."""
    torch.manual_seed(2)
    model, x = SwinIR(TINY).eval(), torch.rand(1, 3, 16, 128)
    changed = x.clone()
    changed[..., :4] = 0
    with torch.no_grad():
        difference = (model(x) - model(changed)).abs().amax(dim=(0, 1, 2))
    assert difference[:4].min() > 0
    assert difference[64:].max() == 0


def test_nano_starts_as_the_identity() -> None:
    torch.manual_seed(3)
    x = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        torch.testing.assert_close(SwinIR(NANO)(x), x, atol=1e-6, rtol=0)  # (x − mean) + mean in float32
    assert sum(p.numel() for p in SwinIR(NANO).parameters()) < 2_100_000  # 4.2 MB in half precision, of nano's 32 MB


@pytest.mark.parametrize("bad", [{"unshuffle": 3}, {"shrink": 0}, {"depths": (2, 2)}, {"upsampler": "x"}])
def test_a_wrong_size_is_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SwinIRConfig(**{**TINY.__dict__, **bad})


def test_mirror_average_is_the_mean_over_both_orientations() -> None:
    torch.manual_seed(0)
    plain = SwinIR(replace(TINY, mirror_average=False)).eval()
    both = SwinIR(replace(TINY, mirror_average=True))
    both.load_state_dict(plain.state_dict())
    pictures = torch.rand(2, 3, 20, 28)
    with torch.no_grad():
        expected = (plain(pictures) + torch.flip(plain(torch.flip(pictures, (3,))), (3,))) / 2
        torch.testing.assert_close(both.eval()(pictures), expected)
        torch.testing.assert_close(both.train()(pictures), plain(pictures))  # training takes pictures as they are
        mirrored = torch.flip(both.eval()(torch.flip(pictures, (3,))), (3,))
        torch.testing.assert_close(mirrored, expected)
