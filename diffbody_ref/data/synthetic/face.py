"""Faces: their shape and expression, and the 68 keypoints (iBUG-68) as fixed points on the skin.

The points on the skin are computed once, by projecting their front view onto the template.
"""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.ops import keypoints as kp

# Points of the left half in millimetres on the template (x, z), by number among the 68 keypoints.
_LEFT_HALF: dict[int, tuple[float, float]] = {
    # jaw, chin to ear
    8: (0, 617.5),
    9: (13, 620),
    10: (27, 626),
    11: (38.5, 636),
    12: (48.5, 649.5),
    13: (56, 664),
    14: (62, 681),
    15: (67.5, 702),
    16: (71, 727),
    # brow, inwards to outwards
    22: (13, 747.5),
    23: (23, 752),
    24: (33, 755),
    25: (43, 756),
    26: (53, 754.4),
    # nose
    27: (0, 738.5),
    28: (0, 724),
    29: (0, 709),
    30: (0, 693.5),
    33: (0, 683.5),
    34: (7.5, 684.5),
    35: (13.5, 686.5),
    # eye: inner corner, upper lid, outer corner, lower lid
    42: (18.8, 726.5),
    43: (27.5, 733.6),
    44: (36.5, 733.8),
    45: (44.8, 728.5),
    46: (36.5, 723.4),
    47: (27.5, 723.6),
    # outer lips, then inner lips
    51: (0, 668.5),
    52: (6, 670.5),
    53: (15.5, 668),
    54: (25.5, 661.5),
    55: (16, 652.5),
    56: (7, 649.5),
    57: (0, 649),
    62: (0, 662.8),
    63: (10, 662.6),
    64: (22.5, 662.2),
    65: (10, 658.6),
    66: (0, 658.4),
}

FEATURES = (
    "cheek-volume-incr",
    "cheek-bones-incr",
    "chin-height-incr",
    "chin-prominent-incr",
    "chin-width-incr",
    "chin-jaw-drop-incr",
    "ear-scale-incr",
    "ear-wing-incr",
    "eyebrows-angle-up",
    "eyebrows-trans-up",
    "eye-scale-incr",
    "eye-height2-incr",
    "eye-bag-incr",
    "eye-corner1-up",
    "forehead-scale-vert-incr",
    "head-fat-incr",
    "head-scale-horiz-incr",
    "mouth-scale-horiz-incr",
    "mouth-lowerlip-height-incr",
    "mouth-upperlip-height-incr",
    "mouth-trans-up",
    "mouth-angles-up",
    "nose-scale-vert-incr",
    "nose-scale-horiz-incr",
    "nose-hump-incr",
    "nose-point-up",
    "nose-volume-incr",
    "nose-nostrils-width-incr",
    "nose-curve-convex",
)
"""Names of the anny local changes by which faces differ, in [-1, 1]; those of paired features are without the side."""

ACTIONS = (
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawOpen",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthPucker",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
)
"""Names of the anny facial actions (those of ARKit) that are used."""


def random_features(rng: np.random.Generator) -> dict[str, float]:
    """Draw the shape of a face: moderate values of `FEATURES`."""
    return dict(zip(FEATURES, np.clip(rng.normal(0, 0.3, len(FEATURES)), -0.7, 0.7).tolist(), strict=True))


def random_expression(rng: np.random.Generator) -> dict[str, float]:
    """Draw an expression, values of `ACTIONS` in [0, 1]: mostly friendly or calm, slightly asymmetric."""
    smile = float(rng.choice([rng.uniform(0.15, 0.45), rng.uniform(0.7, 1.0)], p=[0.45, 0.55]))
    both = {
        "mouthSmile": smile,
        "mouthDimple": 0.3 * smile,
        "cheekSquint": 0.25 * smile,
        "eyeSquint": 0.08 * smile,
        "browOuterUp": float(rng.uniform(0, 0.3)),
        "eyeBlink": float(1.0 if rng.random() < 0.03 else 0.0),
        "eyeWide": float(rng.uniform(0, 0.3)),
        "mouthUpperUp": float(rng.uniform(0.3, 0.6)) if smile > 0.6 and rng.random() < 0.5 else 0.0,
    }
    out = {name + side: value for name, value in both.items() for side in ("Left", "Right")}
    out["mouthSmileLeft"] *= float(rng.uniform(0.85, 1.0))
    out["browInnerUp"] = float(rng.uniform(0, 0.35))
    out["jawOpen"] = float(rng.uniform(0.02, 0.12)) if rng.random() < 0.35 else 0.0
    return out


def template_points() -> np.ndarray:
    """The 68 keypoints in the front view of the template: x and z in metres, float64 (68, 2)."""
    out = np.zeros((68, 2))
    for number, (x, z) in _LEFT_HALF.items():
        mirror = int(kp.FLIP[kp.FACE.start + number]) - kp.FACE.start
        out[mirror] = -x / 1000, z / 1000
        out[number] = x / 1000, z / 1000
    return out


def face_points(template: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the 68 keypoints on the skin.

    Args:
        template: (N, 3), template positions of the skin's vertices.
        faces: int (F, 3), the skin's triangles.

    Returns:
        The numbers of three vertices for each keypoint, int (68, 3), and their weights, float32 (68, 3).
    """
    x, z = template_points().T
    scene = Scene(template, faces, np.ones_like(template))
    face, _, weights = scene.trace(np.stack([x, np.full(68, -1.0), z], 1), np.tile([0.0, 1.0, 0.0], (68, 1)))
    return faces[face], weights
