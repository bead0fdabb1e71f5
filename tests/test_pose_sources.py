"""Files of BPBReID, RTMPose, DWPose and YOLOX, as their own code writes them, become this project's networks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffbody_ref.models.parts import IMAGENET_MEAN, IMAGENET_STD
from diffbody_ref.weights.checkpoint import open_checkpoint
from diffbody_ref.weights.found import Imported
from diffbody_ref.weights.sources import bpbreid, rtmpose, yolox
from tests.published_parts import BpbReid, HrNet, ResNet
from tests.published_pose import RtmPose, Yolox, randomise


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of float32, 2⁻²⁴ an operation, in another order through a hundred layers."""
    assert found.shape == wanted.shape
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert wanted.std() > 0.02  # of a network of zeros everything is equal


class Node(dict[str, Any]):
    """Pickles as yacs' configuration node does, of a module that only exists while the file is written."""

    __module__, __qualname__ = "yacs.config", "CfgNode"


def node(values: Mapping[str, Any]) -> Node:
    made = Node({name: node(v) if isinstance(v, Mapping) else v for name, v in values.items()})
    made.__dict__["__immutable__"] = True
    return made


def optimizer(network: nn.Module) -> dict[str, Any]:
    made = torch.optim.Adam(network.parameters(), lr=1e-3)
    next(iter(network.parameters())).grad = torch.zeros_like(next(iter(network.parameters())))
    made.step()
    return made.state_dict()


def imported(source: Any, path: Path) -> tuple[str, Imported]:
    """What the only component of a file is recognised as, and what it becomes."""
    checkpoint = open_checkpoint(path)
    (found,) = source.detect(checkpoint)
    others = [other for other in (bpbreid, rtmpose, yolox) if other is not source]
    assert not any(other.detect(checkpoint) for other in others)
    return found.what, source.read(checkpoint, found)


# BPBReID


def resnet(parts: int) -> BpbReid:
    return BpbReid(ResNet(8, (1, 2, 2, 1), identities=3), parts, dim=12, identities=3)


def hrnet(parts: int) -> BpbReid:
    return BpbReid(HrNet(8, (8, 12, 16, 20), (1, 2, 1), blocks=2, dim=12), parts, dim=12, identities=3)


def save_reid(path: Path, network: BpbReid, **choices: Any) -> None:
    """As `engine.save_model` does."""
    parts = len(network.parts_identity_classifier)
    masks = {"preprocess": {5: "five_v", 8: "eight"}.get(parts), "parts_num": parts, "dir": "pifpaf"}
    chosen = {"backbone": "x", "pooling": "gwap", "normalization": "identity", "dim_reduce": "after_pooling"}
    config = {
        "project": {"job_id": 7, "start_time": "2022"},
        "data": {"height": 96, "width": 64, "norm_mean": [0.485, 0.456, 0.406], "sources": ["market1501"]},
        "model": {"name": "bpbreid", "bpbreid": {**chosen, "last_stride": 1, "masks": masks, **choices}},
    }
    content = {
        "state_dict": network.state_dict(),
        "epoch": 120,
        "rank1": np.float32(0.95),
        "mAP": np.float64(0.89),
        "ssmd": np.float64(1.7),
        "config": node(config),
        "optimizer": optimizer(network),
        "scheduler": {"milestones": [40, 70], "last_epoch": 120, "_step_count": 121},
    }
    module = ModuleType("yacs.config")
    module.CfgNode = Node  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save(content, path)


@pytest.mark.parametrize(
    ("build", "parts", "what", "part_set"),
    [(resnet, 8, "ResNet-20, 8 parts", "eight"), (hrnet, 5, "HRNet-W8, 5 parts", "five_v")],
)
def test_bpbreid_as_its_engine_saves_it(tmp_path: Path, build: Any, parts: int, what: str, part_set: str) -> None:
    theirs = randomise(build(parts), seed=1)
    save_reid(tmp_path / "job.pth.tar", theirs)
    said, read = imported(bpbreid, tmp_path / "job.pth.tar")
    assert said == f"BPBReID on {what}"
    assert (read.network.settings.part_set, read.network.input_size) == (part_set, (96, 64))
    pictures = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    mean, deviation = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        ours, (masks, embeddings) = read.network(pictures), theirs((pictures - mean) / deviation)
    assert_same(ours.masks, masks)
    assert_same(ours.embeddings, embeddings)
    used = {name for name, _ in read.network.named_parameters()}
    left = {name for name, _ in theirs.named_parameters()} - used
    assert left == {name for name in read.ignored if not name.endswith(("running_mean", "running_var", "_tracked"))}
    assert any("identity_classifier" in name for name in left)


def test_bpbreid_of_what_is_not_built_here_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reid.pth"
    for choices, message in (
        ({"pooling": "gmp"}, "with pooling 'gmp'; only 'gwap' is supported"),
        ({"last_stride": 2}, "with last_stride 2; only 1 is supported"),
        ({"masks": {"preprocess": "five"}}, "with the part set 'five' of 5 parts; known are five_v"),
    ):
        save_reid(path, resnet(5), **choices)
        checkpoint = open_checkpoint(path)
        with pytest.raises(ValueError, match=message):
            bpbreid.read(checkpoint, *bpbreid.detect(checkpoint))
    torch.save(resnet(6).state_dict(), path)
    checkpoint = open_checkpoint(path)
    with pytest.raises(ValueError, match=r"reid\.pth: BPBReID with a part set of 6 parts; known are five_v \(5\)"):
        bpbreid.read(checkpoint, *bpbreid.detect(checkpoint))


def test_bpbreid_of_weights_alone_has_the_usual_sizes(tmp_path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in resnet(5).state_dict().items()}, tmp_path / "reid.pth")
    _, read = imported(bpbreid, tmp_path / "reid.pth")
    assert (read.network.settings.part_set, read.network.input_size) == ("five_v", (384, 128))


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    state = {**resnet(5).state_dict(), "parts_attention_pooling_head.normalization.weight": torch.ones(3)}
    torch.save(state, tmp_path / "reid.pth")
    with pytest.raises(ValueError, match=r"left over, parts_attention_pooling_head\.normalization\.weight first"):
        imported(bpbreid, tmp_path / "reid.pth")


# RTMPose


def save_mmpose(path: Path, state: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None = None) -> None:
    """As mmengine's runner does; with an average, which its hook swaps into `state_dict`."""
    sigmas = np.full(133, 0.05, np.float32)
    meta = {"dataset_name": "coco_wholebody", "sigmas": sigmas, "flip_indices": list(range(133))}
    hub = {"log_scalars": {"train/loss": np.float64(0.1)}, "runtime_info": {"iter": np.int64(9)}, "resumed_keys": {}}
    network = nn.Linear(2, 2)
    checkpoint: dict[str, Any] = {
        "meta": {"epoch": 270, "iter": 9, "cfg": "model = dict()", "seed": 21, "dataset_meta": meta},
        "state_dict": dict(state),
        "message_hub": hub,
        "optimizer": optimizer(network),
        "param_schedulers": [{"last_step": 9}],
    }
    if averaged is not None:
        checkpoint["state_dict"] = dict(averaged)
        last = {f"module.{name}": value for name, value in state.items()}
        checkpoint["ema_state_dict"] = {"steps": torch.tensor(9), **last}
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"c": 24, "n": 1}, "RTMPose-t 96x64, 133 keypoints"),
        ({"c": 32, "n": 2, "height": 256, "width": 192}, "RTMPose-s 256x192, 133 keypoints"),
        ({"c": 8, "n": 4, "hidden": 48, "s": 24}, "RTMPose of 0.125 times l's channels 96x64, 133 keypoints"),
    ],
)
def test_rtmpose_of_mmpose(tmp_path: Path, sizes: dict[str, Any], what: str) -> None:
    theirs = randomise(RtmPose(**sizes), seed=3)
    save_mmpose(tmp_path / "rtm.pth", theirs.state_dict())
    said, read = imported(rtmpose, tmp_path / "rtm.pth")
    assert said == what
    assert read.network.settings.height == sizes.get("height", 96)
    same_scores(read.network, theirs)


def same_scores(ours: nn.Module, theirs: nn.Module) -> None:
    height, width = ours.settings.height, ours.settings.width
    crops = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for found, wanted in zip(ours(crops), theirs(crops), strict=True):
            assert_same(found, wanted)


def test_the_averaged_weights_of_mmengine_are_taken(tmp_path: Path) -> None:
    last, averaged = randomise(RtmPose(), seed=5), randomise(RtmPose(), seed=6)
    save_mmpose(tmp_path / "rtm.pth", last.state_dict(), averaged.state_dict())
    same_scores(imported(rtmpose, tmp_path / "rtm.pth")[1].network, averaged)


def test_a_distillation_gives_what_dwpose_publishes_of_it(tmp_path: Path) -> None:
    small, large, again = (randomise(RtmPose(c), seed) for seed, c in ((7, 8), (8, 16), (9, 16)))
    under = lambda prefix, network: {f"{prefix}.{n}": v for n, v in network.state_dict().items()}  # noqa: E731
    align = {"distill_losses.loss_fea.align.weight": torch.ones(256, 128, 1, 1)}
    save_mmpose(tmp_path / "first.pth", {**under("teacher", large), **under("student", small), **align})
    _, read = imported(rtmpose, tmp_path / "first.pth")
    same_scores(read.network, small)
    assert set(read.ignored) == {*align, *under("teacher", large)}
    # Of the second stage, the head is the student's; the backbone that it was trained on is the teacher's.
    save_mmpose(tmp_path / "second.pth", {**under("teacher", large), **under("student", again)})
    large.head.load_state_dict(again.head.state_dict())
    same_scores(imported(rtmpose, tmp_path / "second.pth")[1].network, large)


def test_other_keypoints_and_other_heads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pose.pth"
    wider = randomise(RtmPose(), seed=1).state_dict()
    wider["head.cls_x.weight"] = torch.cat([wider["head.cls_x.weight"]] * 2)
    for state, message in (
        (RtmPose(joints=17).state_dict(), r"pose\.pth: a network of 17 keypoints; the pose map needs the 133"),
        ({**RtmPose().state_dict(), "neck.reduce_layers.0.conv.weight": torch.ones(1)}, "RTMW, which has a neck"),
        (wider, r"its head reads 6 cells, not the 12 of 96x128 pixels; only 2 bins per pixel"),
    ):
        save_mmpose(path, state)
        checkpoint = open_checkpoint(path)
        with pytest.raises(ValueError, match=message):
            rtmpose.read(checkpoint, *rtmpose.detect(checkpoint))


# YOLOX


@pytest.mark.parametrize(
    ("sizes", "what", "depth"),
    [
        ({"c": 8, "n": 2, "classes": 1}, "YOLOX of 0.125 times l's channels 416x416, 1 class", 2 / 3),
        ({"c": 32, "n": 1}, "YOLOX-s 640x640, 80 classes", 1 / 3),
    ],
)
def test_yolox_as_its_trainer_saves_it(tmp_path: Path, sizes: dict[str, Any], what: str, depth: float) -> None:
    theirs = randomise(Yolox(**sizes), seed=10)
    state = {"start_epoch": 300, "model": theirs.state_dict(), "optimizer": optimizer(theirs), "best_ap": np.float64(1)}
    torch.save({**state, "curr_ap": np.float64(0.4)}, tmp_path / "yolox.pth")
    said, read = imported(yolox, tmp_path / "yolox.pth")
    assert said == what
    assert read.network.settings.depth == depth
    square = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        assert_same(read.network(square), theirs(square))


def test_a_detector_whose_classes_are_unknown_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Yolox(classes=20).state_dict()}, tmp_path / "voc.pth")
    with pytest.raises(ValueError, match=r"voc\.pth: a detector of 20 classes; only of COCO's 80"):
        imported(yolox, tmp_path / "voc.pth")
