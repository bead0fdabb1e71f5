"""The part network: its resize, its outputs, the public checkpoint's names, its training losses."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from diffbody_ref.models.backbones import ExchangeModule, Repeat
from diffbody_ref.models.parts import (
    NANO,
    SD21,
    SD21_RESNET50,
    PartNet,
    PartNetConfig,
    attention_map,
)
from diffbody_ref.models.resizing import resize, upsample
from diffbody_ref.ops.parts import PART_LABELS, PART_SETS, part_names
from diffbody_ref.training.parts_losses import (
    IdentityHead,
    cell_targets,
    overlap_loss,
    part_losses,
    part_triplet_loss,
)

TINY = dataclasses.replace(
    NANO,
    input_height=64,
    input_width=32,
    embedding_dim=8,
    stem_width=4,
    branch_widths=(4, 8, 12, 16),
    head_planes=(2, 2, 2, 2),
)
TINY_RESNET = dataclasses.replace(TINY, backbone="resnet50", stage_blocks=(1, 1, 1, 1))


@pytest.fixture
def net() -> PartNet:
    torch.manual_seed(0)
    return PartNet(TINY).eval()


def test_part_sets_without_torch() -> None:
    code = "import sys, diffbody_ref.ops.parts; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert PART_SETS["paper"] == PART_LABELS[1:] == ("head", "torso", "arms", "legs", "feet")
    assert [len(part_names(name)) for name in ("five_v", "eight")] == [5, 8]
    with pytest.raises(ValueError, match="unknown part set 'nine'"):
        part_names("nine")


@pytest.mark.parametrize("size", [(64, 32), (23, 50), (130, 17)])
def test_resize_is_antialiased_bilinear(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 61, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images, *size), expected, rtol=0, atol=1e-12)  # float64 rounding


def test_upsampling_inside_hrnet_is_torchs() -> None:
    features = torch.rand(2, 3, 5, 3, dtype=torch.float64)
    expected = F.interpolate(features, (20, 12), mode="bilinear", align_corners=True)
    torch.testing.assert_close(upsample(features, 20, 12), expected, rtol=0, atol=1e-12)
    assert torch.equal(Repeat(4)(features), F.interpolate(features, scale_factor=4))


def test_every_branch_of_hrnet_hears_every_other() -> None:
    torch.manual_seed(0)
    module = ExchangeModule((4, 6, 8), blocks=1).eval()
    inputs = [torch.rand(1, width, 16 // 2**i, 8 // 2**i, requires_grad=True) for i, width in enumerate((4, 6, 8))]
    outputs = module(inputs)
    assert [y.shape for y in outputs] == [x.shape for x in inputs]
    for output in outputs:
        gradients = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_resize_to_the_same_size_changes_nothing() -> None:
    images = torch.rand(1, 3, 48, 24)
    assert torch.equal(resize(images, 48, 24), images)


@pytest.mark.parametrize("config", [TINY, TINY_RESNET, dataclasses.replace(TINY, part_set="eight")])
def test_output_shapes_and_ranges(config: PartNetConfig) -> None:
    torch.manual_seed(0)
    net = PartNet(config).eval()
    output = net(torch.rand(2, 3, 90, 41))
    parts, stride = len(PART_SETS[config.part_set]), 4 if config.backbone == "hrnet" else 16
    assert net.part_count == parts
    assert output.embeddings.shape == (2, parts, 8)
    assert output.foreground.shape == output.global_.shape == (2, 8)
    assert output.masks.shape == output.logits.shape == (2, parts + 1, 64 // stride, 32 // stride)
    torch.testing.assert_close(output.masks.sum(dim=1), torch.ones_like(output.masks[:, 0]))
    assert torch.equal(output.foreground_map[:, 0], output.masks[:, 1:].max(dim=1).values)
    assert set(output.visibility.unique().tolist()) <= {0.0, 1.0}
    attention = attention_map(output.masks, 30, 20)
    assert attention.shape == (2, parts + 1, 30, 20)
    assert attention.min() >= 0
    assert attention.max() <= 1


def test_mirror_averaged_attention_does_not_care_for_the_orientation() -> None:
    torch.manual_seed(0)
    net = PartNet(dataclasses.replace(TINY, part_set="eight", mirror_average=True)).eval()
    images = torch.rand(2, 3, 64, 32)
    plain, turned = net(images), net(images.flip(-1))
    masks, mirrored = net.attention_masks(images, plain), net.attention_masks(images.flip(-1), turned)
    # head, left and right arm, torso, left and right leg, left and right foot, after the background
    swapped = [0, 1, 3, 2, 4, 6, 5, 8, 7]
    torch.testing.assert_close(mirrored, masks[:, swapped].flip(-1))
    torch.testing.assert_close(masks[:, 2], (plain.masks[:, 2] + turned.masks[:, 3].flip(-1)) / 2)
    net.settings = dataclasses.replace(net.settings, mirror_average=False)
    assert torch.equal(net.attention_masks(images, plain), plain.masks)


def test_part_embedding_is_the_mask_weighted_mean_of_features(net: PartNet) -> None:
    """Against loops in numpy, and with the foreground averaged over all cells."""
    images = torch.rand(1, 3, 64, 32)
    output = net(images)
    features = net.backbone_appearance_feature_extractor(net.preprocess(images))[0].detach().double().numpy()
    masks = output.masks[0].detach().double().numpy()

    def reduced(pooled: np.ndarray, layer: torch.nn.Module) -> torch.Tensor:
        return layer(torch.from_numpy(pooled).float()[None])[0]

    for k in range(net.part_count):
        pooled = np.array([(channel * masks[k + 1]).sum() / masks[k + 1].sum() for channel in features])
        expected = reduced(pooled, net.parts_after_pooling_dim_reduce)
        torch.testing.assert_close(output.embeddings[0, k], expected, rtol=1e-4, atol=1e-5)  # float32 sums
    pooled = np.array([(channel * masks[1:].max(axis=0)).mean() for channel in features])
    expected = reduced(pooled, net.foreground_after_pooling_dim_reduce)
    torch.testing.assert_close(output.foreground[0], expected, rtol=1e-4, atol=1e-5)


def test_visibility_is_the_parts_that_win_a_cell(net: PartNet) -> None:
    with torch.no_grad():
        net.pixel_classifier.classifier.weight.zero_()
        net.pixel_classifier.classifier.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 1.0, 2.0, 1.0]))
    output = net(torch.rand(1, 3, 64, 32))
    assert output.visibility.tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0]]
    assert not output.visibility.requires_grad


def test_gradient_reaches_the_picture(net: PartNet) -> None:
    images = torch.rand(1, 3, 80, 50, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(images).embeddings.sum(), images)
    assert gradient.isfinite().all()
    # Antialiasing lets every pixel of a picture that is larger than the input count.
    assert (gradient != 0).float().mean() > 0.99


def test_batch_equals_samples_alone(net: PartNet) -> None:
    images = torch.rand(3, 3, 64, 32)
    together = net(images)
    for i in range(3):
        alone = net(images[i : i + 1])
        # Batched convolutions may sum in another order: a few float32 ulps.
        torch.testing.assert_close(alone.embeddings[0], together.embeddings[i], rtol=1e-4, atol=1e-6)


def test_bf16_autocast(net: PartNet) -> None:
    images = torch.rand(1, 3, 64, 32, requires_grad=True)
    exact = net(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(images)
    torch.autograd.grad(output.embeddings.float().sum(), images)
    # bfloat16 has 8 significant bits: 0.4 % a layer, over some 20 layers.
    torch.testing.assert_close(output.masks.float(), exact.masks, rtol=0, atol=0.03)


def test_save_and_load(net: PartNet, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    loaded = PartNet.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 64, 32)
    assert torch.equal(net(images).embeddings, loaded(images).embeddings)


def test_names_and_shapes_of_the_public_checkpoint() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in PartNet(SD21).state_dict().items()}
    backbone = "backbone_appearance_feature_extractor."
    expected = {
        backbone + "conv2.weight": (64, 64, 3, 3),
        backbone + "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        backbone + "layer1.3.bn3.running_var": (256,),
        backbone + "transition1.0.0.weight": (32, 256, 3, 3),
        backbone + "transition1.1.0.0.weight": (64, 256, 3, 3),
        backbone + "transition2.2.0.0.weight": (128, 64, 3, 3),
        backbone + "transition3.3.0.1.weight": (256,),
        backbone + "stage2.0.branches.1.3.conv2.weight": (64, 64, 3, 3),
        backbone + "stage3.3.fuse_layers.0.2.0.weight": (32, 128, 1, 1),
        backbone + "stage4.2.fuse_layers.3.0.1.0.weight": (32, 32, 3, 3),
        backbone + "stage4.2.fuse_layers.3.0.2.0.weight": (256, 32, 3, 3),
        backbone + "incre_modules.3.0.conv3.weight": (1024, 256, 1, 1),
        "pixel_classifier.bn.weight": (1920,),
        "pixel_classifier.classifier.weight": (6, 1920, 1, 1),
        "parts_after_pooling_dim_reduce.layers.0.weight": (512, 1920),
        "foreground_after_pooling_dim_reduce.layers.1.running_mean": (512,),
        "global_after_pooling_dim_reduce.layers.0.bias": (512,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    # HRNet-W32 without its classification head: 1 + 4 + 3 modules of 2, 3, 4 branches of 4 blocks of 2 convolutions.
    branch_convs = sum(1 for name in shapes if ".branches." in name and ".conv" in name)
    assert branch_convs == (1 * 2 + 4 * 3 + 3 * 4) * 4 * 2
    with torch.device("meta"):
        names = set(PartNet(SD21_RESNET50).state_dict())
    assert {backbone + "layer3.5.conv3.weight", backbone + "layer4.0.downsample.1.bias"} <= names


def test_one_exported_graph_takes_small_and_large_pictures(net: PartNet) -> None:
    class Maps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.net(images)
            return output.embeddings, output.masks

    sides = {axis: torch.export.Dim(f"side{axis}", min=16, max=1024) for axis in (2, 3)}
    graph = torch.export.export(Maps(), (torch.rand(2, 3, 96, 48),), dynamic_shapes=(sides,)).module()
    for height, width in ((40, 20), (100, 70)):
        images = torch.rand(2, 3, height, width)
        torch.testing.assert_close(graph(images), Maps()(images))


def test_nano_is_small_and_fast() -> None:
    torch.manual_seed(0)
    net = PartNet(NANO).eval()
    assert sum(p.numel() for p in net.parameters()) < 800_000
    images = torch.rand(1, 3, 256, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        net(images).embeddings.sum().backward()
    # A step of guidance there and back is 0.5·10⁹ operations, some 0.03 s on one core.
    assert counter.get_total_flops() < 0.6e9


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "vit", "must be 'hrnet' or 'resnet50'"),
        ("input_width", 100, "input_width is 100; it must be a positive multiple of 32"),
        ("part_set", "nine", "unknown part set"),
        ("branch_widths", (4, 8), "a hrnet takes 4"),
    ],
)
def test_bad_config(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **{field: value})  # type: ignore[arg-type]


def test_bad_pictures(net: PartNet) -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\); they must be \(B, 3, H, W\)"):
        net(torch.rand(1, 4, 8, 8))


def test_cell_targets_are_shares() -> None:
    labels = torch.tensor([[[1, 0, 2, 2], [0, 0, 2, 2], [0, 0, 5, 5], [0, 0, 5, 0]]], dtype=torch.uint8)
    targets = cell_targets(labels, 6, 2, 2)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(1, 2, 2))
    # The triangle of a cell reaches into its neighbours: weights 3/7, 3/7, 1/7 on the first axis at a border.
    assert targets[0, 1, 0, 0].item() == pytest.approx((3 / 7) ** 2)
    assert targets[0, 2].argmax().item() == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cell_targets(labels, 6, 2, 2), targets)


def test_triplet_by_hand() -> None:
    """Two people in one dimension; part 1 of the last picture is hidden."""
    embeddings = torch.tensor([[[0.0], [0.0]], [[1.0], [3.0]], [[4.0], [4.0]], [[5.0], [100.0]]])
    visibility = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    identities = torch.tensor([0, 0, 1, 1])
    # Distances: d01 = (1+3)/2, d02 = 4, d03 = 5, d12 = (3+1)/2, d13 = 4, d23 = 1.
    anchors = [2 - 4 + 2.5, 2 - 2 + 2.5, 1 - 2 + 2.5, max(0.0, 1 - 4 + 2.5)]
    loss = part_triplet_loss(embeddings, visibility, identities, margin=2.5)
    assert loss.item() == pytest.approx(sum(anchors) / 4)


def test_triplet_without_partners_is_zero() -> None:
    embeddings = torch.rand(3, 2, 4, requires_grad=True)
    hidden = part_triplet_loss(embeddings, torch.zeros(3, 2), torch.tensor([0, 0, 1]), 10.0)
    strangers = part_triplet_loss(embeddings, torch.ones(3, 2), torch.tensor([0, 1, 2]), 10.0)
    (gradient,) = torch.autograd.grad(hidden + strangers, embeddings)
    assert hidden.item() == strangers.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_overlap_loss_is_one_minus_the_jaccard_index_of_labels() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 3, (2, 4, 6, 5))
    masks, targets = (F.one_hot(torch.from_numpy(a), 3).permute(0, 3, 1, 2).float() for a in (found, truth))
    index = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(3)]
    assert overlap_loss(masks, targets).item() == pytest.approx(1 - np.mean(index), abs=1e-6)


def test_the_overlap_loss_of_shares_is_least_at_the_truth() -> None:
    """The product form, 1 − Σmt / Σ(m + t − mt), is not: it asks for labels where the truth has shares."""
    targets = torch.full((1, 2, 4, 4), 0.5)
    assert overlap_loss(targets, targets).item() == 0
    logits = torch.tensor([0.3, 0.0])[None, :, None, None].expand(1, 2, 4, 4).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(overlap_loss(logits.softmax(dim=1), targets), logits)
    assert (gradient[:, 0] > 0).all()  # towards the truth
    assert (gradient[:, 1] < 0).all()


def test_losses_overfit_a_toy_batch() -> None:
    """Four people of one colour each, in two pictures each with bands as parts."""
    torch.manual_seed(0)
    net = PartNet(TINY)
    head = IdentityHead(4, TINY)
    identities = torch.arange(4).repeat_interleave(2)
    bands = torch.tensor([1, 2, 3, 4, 5]).repeat_interleave(12)[:, None].expand(60, 14)
    labels = F.pad(bands, (9, 9, 2, 2)).expand(8, 64, 32)
    colours = torch.rand(4, 6, 3)[identities]
    images = torch.stack([colour[label] for colour, label in zip(colours, labels, strict=True)]).permute(0, 3, 1, 2)
    images = images + 0.02 * torch.randn(images.shape)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-2)
    history = []
    for _ in range(60):
        output = net(images)
        losses = part_losses(output, head(output), labels, identities)
        weighted = 0.35 * losses["pixels"] + 3 * losses["identity"] + losses["triplet"]
        torch.testing.assert_close(losses["total"], weighted)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    # Undecided at first: the logarithm of the number of classes.
    assert history[0]["pixels"] == pytest.approx(math.log(6), rel=0.2)
    assert history[0]["identity"] == pytest.approx(math.log(4), rel=0.05)
    # Chance gives 0.25 and (background alone) 0.59; label smoothing keeps the losses themselves from 0. Training makes
    # the rounding of another processor as large as another seed: over seeds, 0.88 to 0.90 of the cells are right, and
    # the loss falls to 0.24 to 0.27 of what it was.
    output = net(images)
    correct = (head(output)[2].argmax(dim=1) == identities).float().mean()
    cells = (output.masks.argmax(dim=1) == cell_targets(labels, 6, 16, 8).argmax(dim=1)).float().mean()
    assert correct == 1
    assert cells > 0.75
    assert history[-1]["triplet"] < 0.05
    assert history[-1]["total"] < 0.5 * history[0]["total"]
