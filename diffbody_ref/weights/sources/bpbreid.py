"""BPBReID, the part network: files of its `engine.save_model`, on HRNet-W32 or a ResNet of bottleneck blocks.

Parameter names are those of `diffbody_ref.models.parts`. Beside the tensors such a file has scores and the
configuration of the training, which says what shapes do not: the part set, the size of its pictures, and choices that
this project's network does not have, which are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffbody_ref.models.parts import PartNet, PartNetConfig
from diffbody_ref.ops.parts import PART_SETS
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import below, count_layers, fill, split, without_weights
from diffbody_ref.weights.found import Found, Imported
from diffbody_ref.weights.unpickling import Record

NAME = "BPBReID"
LICENCE = "Hippocratic License 3.0"

BACKBONE = "backbone_appearance_feature_extractor."
CLASSIFIER = "pixel_classifier.classifier.weight"
EMBEDDING = "parts_after_pooling_dim_reduce.layers.0.weight"
PUBLIC_SETS = {5: "five_v", 8: "eight"}  # part sets of the public checkpoints, by their number of parts
IGNORED = {
    r"_identity_classifier\.": "tells apart the people of its training data",
    r"^background_after_pooling_dim_reduce\.": "embeds the background, which nothing is compared by",
    rf"^{BACKBONE}(classifier|fc)\.": "is the backbone's own classifier, which nothing reads",
    rf"^{BACKBONE}cls_head\.": "reduces channels before pooling, which this model does after it",
}
# What the configuration must say, where the file has one: the choices that `PartNet` states.
CHOICES = {
    "pooling": ("gwap", "part features are weighted means"),
    "normalization": ("identity", "part features are not normalised before pooling"),
    "dim_reduce": ("after_pooling", "embeddings are reduced after pooling"),
    "last_stride": (1, "the backbone's last stage keeps the resolution"),
    "learnable_attention_enabled": (True, "the network finds the parts by itself"),
}


def detect(checkpoint: Checkpoint) -> list[Found]:
    """The part network in a file of BPBReID's own code."""
    tensors = checkpoint.tensors
    if any(name not in tensors or tensors[name].ndim != 4 for name in (f"{BACKBONE}conv1.weight", CLASSIFIER)):
        return []
    config = _backbone(tensors)
    parts = tensors[CLASSIFIER].shape[0] - 1
    backbone = "HRNet" if config["backbone"] == "hrnet" else f"ResNet-{3 * sum(config['stage_blocks']) + 2}"
    width = f"-W{config['branch_widths'][0]}" if "branch_widths" in config else ""
    return [Found("parts", f"BPBReID on {backbone}{width}, {parts} parts", config)]


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The part network, whose sizes the shapes say.

    Raises:
        ValueError: a part set or a choice of BPBReID's that `PartNet` does not have, or tensors that do not fit.
    """
    tensors, path = checkpoint.tensors, checkpoint.path
    if EMBEDDING not in tensors:
        raise ValueError(
            f"{path}: BPBReID without {EMBEDDING}: it reduces its embeddings before pooling, which is not supported"
        )
    training = checkpoint.extras.get("config")
    choices = _section(training, "model", "bpbreid")
    for name, (wanted, because) in CHOICES.items():
        if choices.get(name, wanted) != wanted:
            raise ValueError(f"{path}: BPBReID with {name} {choices[name]!r}; only {wanted!r} is supported: {because}")
    data = _section(training, "data")
    config = PartNetConfig(
        **found.config,
        part_set=_part_set(path, tensors[CLASSIFIER].shape[0] - 1, _section(choices, "masks").get("preprocess")),
        embedding_dim=tensors[EMBEDDING].shape[0],
        input_height=data.get("height", PartNetConfig.input_height),
        input_width=data.get("width", PartNetConfig.input_width),
    )
    used, ignored = split(tensors, IGNORED)
    return Imported(fill(without_weights(lambda: PartNet(config)), used, path), ignored, LICENCE)


def _backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `PartNetConfig` that describe the backbone."""
    body = below(tensors, BACKBONE)
    stem = body["conv1.weight"].shape[0]
    if "layer4.0.conv1.weight" in body:
        blocks = tuple(count_layers(body, rf"^layer{stage}\.(\d+)\.") for stage in range(1, 5))
        return {"backbone": "resnet50", "stem_width": stem, "stage_blocks": blocks}
    return {
        "backbone": "hrnet",
        "stem_width": stem,
        "stage_blocks": (count_layers(body, r"^layer1\.(\d+)\."),),
        "branch_widths": tuple(_widths(body, "stage4.0.branches.{}.0.conv1.weight")),
        "branch_modules": tuple(count_layers(body, rf"^stage{stage}\.(\d+)\.") for stage in (2, 3, 4)),
        "branch_blocks": count_layers(body, r"^stage4\.0\.branches\.0\.(\d+)\."),
        "head_planes": tuple(_widths(body, "incre_modules.{}.0.conv1.weight")),
    }


def _widths(tensors: Mapping[str, Tensor], name: str) -> Iterator[int]:
    """Output channels of name.format(0), name.format(1), …"""
    place = 0
    while (weight := tensors.get(name.format(place))) is not None:
        yield weight.shape[0]
        place += 1


def _part_set(path: Path, parts: int, named: Any) -> str:
    """The part set that the configuration names, or else the public one of this many parts."""
    known = ", ".join(f"{name} ({count})" for count, name in PUBLIC_SETS.items())
    chosen = PUBLIC_SETS.get(parts) if named is None else named
    if chosen not in PART_SETS or len(PART_SETS[chosen]) != parts:
        which = f"the part set {named!r}" if named is not None else "a part set"
        raise ValueError(f"{path}: BPBReID with {which} of {parts} parts; known are {known}")
    return chosen


def _section(values: Any, *names: str) -> Mapping[str, Any]:
    """A section of the configuration, which is a yacs node of nodes; empty where it is not there."""
    for name in names:
        values = _items(values).get(name)
    return _items(values)


def _items(node: Any) -> Mapping[str, Any]:
    """The items of a dictionary, or of the inert record of one."""
    if isinstance(node, Record):
        return {item[0]: item[1] for item in node.contents if isinstance(item, tuple) and len(item) == 2}
    return node if isinstance(node, Mapping) else {}
