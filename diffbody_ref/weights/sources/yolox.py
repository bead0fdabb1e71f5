"""YOLOX, the person detector: files of its own code, of the sizes nano, tiny, s, m, l and x.

Parameter names are those of `diffbody_ref.models.detector`. The trainer writes the averaged weights under `model`.
"""

from __future__ import annotations

from typing import Any

from diffbody_ref.models.detector import DetectorConfig, PersonDetector
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import count_layers, fill, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "YOLOX"
LICENCE = "Apache-2.0"

STEM = "backbone.backbone.stem.conv.conv.weight"
CLASSES = "head.cls_preds.0.weight"
SIZES = {0.25: "nano", 0.375: "tiny", 0.5: "s", 0.75: "m", 1.0: "l", 1.25: "x"}  # by the multiplier of channels
PERSON_FIRST = (1, 80)  # numbers of classes, of people alone and of COCO, whose first class is the person
SMALL = 416  # side of the input of nano and tiny; of the others it is DetectorConfig's


def detect(checkpoint: Checkpoint) -> list[Found]:
    """The person detector in a file of YOLOX's own code."""
    tensors = checkpoint.tensors
    if any(name not in tensors or tensors[name].ndim != 4 for name in (STEM, CLASSES)):
        return []
    width = tensors[STEM].shape[0] / 64
    config: dict[str, Any] = {
        "size": DetectorConfig.size if width >= 0.5 else SMALL,
        # Stages have 3 or 9 blocks times the depth.
        "depth": count_layers(tensors, r"^backbone\.backbone\.dark2\.1\.m\.(\d+)\.") / 3,
        "width": width,
        "depthwise": any(name.endswith(".dconv.conv.weight") for name in tensors),
        "num_classes": tensors[CLASSES].shape[0],
    }
    what = f"YOLOX-{SIZES[width]}" if width in SIZES else f"YOLOX of {width:g} times l's channels"
    return [Found("pose_detector", f"{what} {config['size']}x{config['size']}, {_classes(config)}", config)]


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The detector, whose sizes the shapes say.

    Raises:
        ValueError: its first class may not be the person, or its tensors do not fit.
    """
    if found.config["num_classes"] not in PERSON_FIRST:
        raise ValueError(
            f"{checkpoint.path}: a detector of {_classes(found.config)}; only of COCO's 80, or of a single one, is it "
            "known which is the person"
        )
    network = without_weights(lambda: PersonDetector(DetectorConfig(**found.config)))
    return Imported(fill(network, checkpoint.tensors, checkpoint.path), {}, LICENCE)


def _classes(config: Any) -> str:
    return "1 class" if config["num_classes"] == 1 else f"{config['num_classes']} classes"
