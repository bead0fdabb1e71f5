"""SwinIR: DiffBIR's regression stages, and the networks for real pictures of SwinIR's own project."""

from __future__ import annotations

import math
import re

from diffbody_ref.models.swinir import SwinIR, SwinIRConfig
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import below, count_layers, fill, split, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "SwinIR"
PREFIXES = ("preprocess_model.", "")  # of DiffBIR's full checkpoints, and of SwinIR's own files
TABLE = "residual_group.blocks.0.attn.relative_position_bias_table"
COMPUTED = {r"(^|\.)(relative_position_index|attn_mask)$": "computed from the sizes"}


def detect(checkpoint: Checkpoint) -> list[Found]:
    """A SwinIR, whatever its sizes."""
    for prefix in PREFIXES:
        tensors = below(checkpoint.tensors, prefix)
        first = next((tensors[n] for n in ("conv_first.1.weight", "conv_first.weight") if n in tensors), None)
        if first is None or f"layers.0.{TABLE}" not in tensors:
            continue
        table = tensors[f"layers.0.{TABLE}"]
        depth = count_layers(tensors, r"^layers\.(\d+)\.")
        blocks = (count_layers(tensors, rf"^layers\.{i}\.residual_group\.blocks\.(\d+)\.") for i in range(depth))
        unshuffle = math.isqrt(first.shape[1] // 3)
        factor = 2 ** count_layers(tensors, r"^conv_up(\d+)\.weight$") // 2
        width = first.shape[0]
        hidden = tensors["layers.0.residual_group.blocks.0.mlp.fc1.weight"].shape[0]
        config = {
            "unshuffle": unshuffle,
            "shrink": max(factor // unshuffle, 1),
            "embed_dim": width,
            "depths": tuple(blocks),
            "num_heads": tuple(tensors[f"layers.{i}.{TABLE}"].shape[1] for i in range(depth)),
            "window_size": (math.isqrt(table.shape[0]) + 1) // 2,
            "mlp_ratio": hidden / width,
            "num_feat": tensors["conv_last.weight"].shape[1] if "conv_last.weight" in tensors else 64,
            "bottleneck": "conv_after_body.0.weight" in tensors,
        }
        cells = f"cells of {unshuffle}x{unshuffle} pixels" if unshuffle > 1 else f"enlarging {factor}x"
        what = f"SwinIR, {depth} groups of {width} channels, {cells}"
        return [Found("swinir", what, {"prefix": prefix, "sizes": config}, (prefix,))]
    return []


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The regression stage.

    Raises:
        ValueError: it is one of SwinIR's networks for other tasks, or a tensor is missing or left over.
    """
    tensors, ignored = split(below(checkpoint.tensors, found.config["prefix"]), COMPUTED)
    if "conv_hr.weight" not in tensors:
        raise ValueError(
            f"{checkpoint.path}: a SwinIR without conv_hr, for clean pictures, noise or JPEG only; "
            "the regression stage needs one for real pictures (realSR)"
        )
    tensors = {re.sub(r"^conv_first\.(weight|bias)$", r"conv_first.1.\1", name): t for name, t in tensors.items()}
    network = without_weights(lambda: SwinIR(SwinIRConfig(**found.config["sizes"])))
    ignored = {found.config["prefix"] + name: reason for name, reason in ignored.items()}
    return Imported(fill(network, tensors, checkpoint.path), ignored, "Apache-2.0 (DiffBIR, SwinIR)")
