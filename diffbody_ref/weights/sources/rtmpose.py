"""RTMPose and DWPose: mmpose's files of a network of 133 whole-body keypoints, and DWPose's distillations of it.

Parameter names are those of `diffbody_ref.models.pose`. The sizes t, s, m, l and x differ in width and depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffbody_ref.models.pose import PoseConfig, PoseEstimator
from diffbody_ref.ops.keypoints import COUNT
from diffbody_ref.ops.pose import SPLIT_RATIO
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import count_layers, fill, split, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "RTMPose"
LICENCE = "Apache-2.0 (mmpose, DWPose)"

STEM = "backbone.stem.2.conv.weight"
# Weights that make a file this source's, and their numbers of dimensions; sizes are read from their shapes.
KEYPOINTS, CELLS = "head.final_layer.weight", "head.mlp.1.weight"
NEEDED = {STEM: 4, KEYPOINTS: 4, CELLS: 2, "head.gau.gamma": 2, "head.cls_x.weight": 2, "head.cls_y.weight": 2}
SIZES = {0.375: "t", 0.5: "s", 0.75: "m", 1.0: "l", 1.25: "x"}  # by the multiplier of channels
IGNORED = {
    r"^data_preprocessor\.": "is the mean or deviation of pictures, which this project knows",
    r"^head\.loss_module\.": "belongs to the training's loss",
}


def detect(checkpoint: Checkpoint) -> list[Found]:
    """The keypoint network in a file of mmpose's; one of other keypoints is recognised, too, and refused by `read`."""
    every = _averaged(checkpoint)
    tensors = {own: every[name] for own, name in _names(every).items()}
    if any(name not in tensors or tensors[name].ndim != dims for name, dims in NEEDED.items()):
        return []
    config = _config(tensors)
    width, keypoints = config["widen"], tensors[KEYPOINTS].shape[0]
    what = f"RTMPose-{SIZES[width]}" if width in SIZES else f"RTMPose of {width:g} times l's channels"
    return [Found("pose", f"{what} {config['height']}x{config['width']}, {keypoints} keypoints", config)]


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The keypoint network, whose sizes the shapes say.

    Raises:
        ValueError: it is a network of other keypoints or RTMW, or its tensors do not fit.
    """
    every, path = _averaged(checkpoint), checkpoint.path
    names = _names(every)
    tensors = {own: every[name] for own, name in names.items()}
    if (count := tensors[KEYPOINTS].shape[0]) != COUNT:
        raise ValueError(
            f"{path}: a network of {count} keypoints; the pose map needs the {COUNT} of COCO-WholeBody (body, feet, "
            "face, hands): take a whole-body RTMPose or DWPose"
        )
    if any(name.startswith("neck.") for name in tensors):
        raise ValueError(f"{path}: RTMW, which has a neck between backbone and head; take RTMPose or DWPose")
    config = PoseConfig(**found.config)
    side = 2 ** (config.stages + 1)
    cells = math.ceil(config.height / side) * math.ceil(config.width / side)
    if (reads := tensors[CELLS].shape[1]) != cells:
        raise ValueError(
            f"{path}: its head reads {reads} cells, not the {cells} of {config.height}x{config.width} pixels; only "
            f"{SPLIT_RATIO:g} bins per pixel are supported"
        )
    tensors, ignored = split(tensors, IGNORED)
    ignored |= dict.fromkeys(every.keys() - set(names.values()), "serves the distillation only")
    return Imported(fill(without_weights(lambda: PoseEstimator(config)), tensors, path), ignored, LICENCE)


def _averaged(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The tensors that mmengine averaged: where it averages, it swaps `state_dict` and `ema_state_dict` in the file."""
    swapped = checkpoint.extras.get("state_dict")
    if not isinstance(swapped, dict):
        return checkpoint.tensors
    return {name.removeprefix("module."): value for name, value in swapped.items() if isinstance(value, Tensor)}


def _names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By its name in the keypoint network, a tensor's name in the file: of a distillation, of what DWPose publishes.

    The first stage trains a student, with a loss on features that needs a layer if both differ in width. The second
    one trains only a head anew, on the backbone of the teacher, which is of the same size.
    """
    if not any(name.startswith("student.head.") for name in tensors):
        return {name: name for name in tensors}
    student = {name.removeprefix("student."): name for name in tensors if name.startswith("student.")}
    first_stage = any(name.startswith("distill_losses.loss_fea.") for name in tensors)
    alike = all(
        f"teacher.{own}" in tensors and tensors[f"teacher.{own}"].shape == tensors[name].shape
        for own, name in student.items()
    )
    if first_stage or not alike:
        return student
    return {own: f"teacher.{own}" if own.startswith("backbone.") else name for own, name in student.items()}


def _config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `PoseConfig`."""
    stages = sum(f"backbone.stage{stage}.0.conv.weight" in tensors for stage in range(1, 5))
    # Stages have 3, 6, 6 and 3 blocks times the depth; from the second, the depth of every public size is exact.
    blocks = count_layers(tensors, r"^backbone\.stage2\.1\.blocks\.(\d+)\.")
    return {
        "height": int(tensors["head.cls_y.weight"].shape[0] / SPLIT_RATIO),
        "width": int(tensors["head.cls_x.weight"].shape[0] / SPLIT_RATIO),
        "widen": tensors[STEM].shape[0] / 64,
        "deepen": blocks / 6,
        "stages": stages,
        "final_kernel": tensors[KEYPOINTS].shape[2],
        "hidden": tensors[CELLS].shape[0],
        "attention_dim": tensors["head.gau.gamma"].shape[1],
    }
