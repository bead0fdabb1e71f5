"""Labels of a picture's main person: the part map, and the 133 keypoints with their visibility."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.body import ARMS, FEET, HEAD, LEGS, TORSO, Posed
from diffbody_ref.data.synthetic.clothing import Dressed
from diffbody_ref.data.synthetic.scene import Camera
from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.ops import keypoints as kp

# How far a visible joint may lie behind the first surface, in metres for a body 1.7 m tall.
_DEPTHS = {"shoulder": 0.13, "elbow": 0.09, "wrist": 0.07, "hip": 0.17, "knee": 0.11, "ankle": 0.09}
# The parts of which this surface may be.
_PARTS = {
    "shoulder": (TORSO, ARMS, HEAD),
    "elbow": (ARMS,),
    "wrist": (ARMS,),
    "hip": (TORSO, LEGS),
    "knee": (LEGS,),
    "ankle": (LEGS, FEET),
}


def _visibility_rule(name: str) -> tuple[float, tuple[int, ...]]:
    """How far a visible keypoint may lie behind the first surface, and the parts of which this surface may be."""
    joint = name.partition("_")[2]
    if joint in _DEPTHS:
        return _DEPTHS[joint], _PARTS[joint]
    if "toe" in joint or joint == "heel":
        return 0.07, (FEET,)
    if joint.startswith(("hand", "thumb", "forefinger", "middle", "ring", "pinky")):
        return 0.035, (ARMS,)
    return (0.05 if joint == "ear" else 0.025), (HEAD,)


def keypoints(posed: Posed, camera: Camera, scene: Scene, mesh: Dressed, height: int, width: int) -> np.ndarray:
    """The keypoints of a person in the picture.

    A keypoint is visible if a ray from the camera to it meets its own part of the person near the keypoint.

    Args:
        posed: the posed body.
        camera: the camera.
        scene: a scene whose first faces are the person's mesh; all others (things, other people) hide what is behind.
        mesh: the person's mesh.
        height: height of the picture in pixels.
        width: width of the picture in pixels.

    Returns:
        float32 (133, 3): x, y in pixels and visibility: 0 unknown, 1 hidden or outside the picture, 2 visible.
    """
    known = np.isfinite(posed.keypoints[:, 0])
    points = np.where(known[:, None], posed.keypoints, 0)
    pixel = camera.project(points)
    ray = points - camera.position
    depth = np.linalg.norm(ray, axis=1)
    face, hit, weights = scene.trace(camera.position, ray / depth[:, None])
    own_mesh = (face >= 0) & (face < len(mesh.faces))
    parts = np.einsum("kc,kcp->kp", weights, mesh.parts[mesh.faces[np.where(own_mesh, face, 0)]])
    label = np.where(parts.sum(1) > 0.5, parts.argmax(1), -1)
    scale = np.clip(np.ptp(posed.vertices[:, 2]) / 1.7, 0.5, 1.2)
    rules = [_visibility_rule(name) for name in kp.NAMES]
    near = own_mesh & (hit > depth - scale * np.array([rule[0] for rule in rules]))
    own_part = np.array([label[i] in rule[1] for i, rule in enumerate(rules)])
    framed = (pixel >= -0.5).all(1) & (pixel < np.array([width, height]) - 0.5).all(1)
    visibility = np.where(known, np.where(near & own_part & framed, 2, 1), 0)
    out = np.concatenate([pixel, visibility[:, None]], 1).astype(np.float32)
    out[~known] = 0
    return out


def part_map(label: np.ndarray, samples: int) -> np.ndarray:
    """The part map, uint8 (H, W): the most frequent label among each pixel's samples, the smallest one in a tie.

    Args:
        label: uint8 (H·S, W·S), labels of the samples.
        samples: S, samples per pixel in each direction.
    """
    grid = [label[i::samples, j::samples] for i in range(samples) for j in range(samples)]
    counts = np.stack([sum((cell == number).astype(np.int8) for cell in grid) for number in range(6)])
    return counts.argmax(0).astype(np.uint8)
