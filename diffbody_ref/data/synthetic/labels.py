"""Labels of a picture: part map, box and the visibility of the 133 keypoints, of the main person only."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.body import ARMS, FEET, HEAD, LEGS, TORSO, Posed
from diffbody_ref.data.synthetic.clothing import Dressed
from diffbody_ref.data.synthetic.scene import Camera
from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.ops import keypoints as kp

# How far behind the first surface (metres, of a body 1.7 m tall) a joint may lie and still be seen, and on which parts.
_DEPTHS = {"shoulder": 0.13, "elbow": 0.09, "wrist": 0.07, "hip": 0.17, "knee": 0.11, "ankle": 0.09}
_ON = {
    "shoulder": (TORSO, ARMS, HEAD),
    "elbow": (ARMS,),
    "wrist": (ARMS,),
    "hip": (TORSO, LEGS),
    "knee": (LEGS,),
    "ankle": (LEGS, FEET),
}


def _seen(name: str) -> tuple[float, tuple[int, ...]]:
    joint = name.partition("_")[2]
    if joint in _DEPTHS:
        return _DEPTHS[joint], _ON[joint]
    if "toe" in joint or joint == "heel":
        return 0.07, (FEET,)
    if joint.startswith(("hand", "thumb", "forefinger", "middle", "ring", "pinky")):
        return 0.035, (ARMS,)
    return (0.05 if joint == "ear" else 0.025), (HEAD,)


def keypoints(posed: Posed, camera: Camera, scene: Scene, mesh: Dressed, height: int, width: int) -> np.ndarray:
    """float32 (133, 3): pixels, and visibility 2 only where a ray from the camera meets the point's own part near it.

    Args:
        scene: its first faces are the person's mesh; all others (things, other people) hide what is behind.
    """
    there = np.isfinite(posed.keypoints[:, 0])
    points = np.where(there[:, None], posed.keypoints, 0)
    pixel = camera.project(points)
    ray = points - camera.position
    depth = np.linalg.norm(ray, axis=1)
    face, hit, weights = scene.trace(camera.position, ray / depth[:, None])
    own_mesh = (face >= 0) & (face < len(mesh.faces))
    parts = np.einsum("kc,kcp->kp", weights, mesh.parts[mesh.faces[np.where(own_mesh, face, 0)]])
    label = np.where(parts.sum(1) > 0.5, parts.argmax(1), -1)
    scale = np.clip(np.ptp(posed.vertices[:, 2]) / 1.7, 0.5, 1.2)
    rules = [_seen(name) for name in kp.NAMES]
    near = own_mesh & (hit > depth - scale * np.array([rule[0] for rule in rules]))
    own = np.array([label[i] in rule[1] for i, rule in enumerate(rules)])
    framed = (pixel >= -0.5).all(1) & (pixel < np.array([width, height]) - 0.5).all(1)
    visibility = np.where(there, np.where(near & own & framed, 2, 1), 0)
    out = np.concatenate([pixel, visibility[:, None]], 1).astype(np.float32)
    out[~there] = 0
    return out


def part_map(label: np.ndarray, samples: int) -> np.ndarray:
    """uint8 (H, W): the label most of a pixel's samples (H·S, W·S) have, the background 0 at a tie."""
    grid = [label[i::samples, j::samples] for i in range(samples) for j in range(samples)]
    counts = np.stack([sum((cell == number).astype(np.int8) for cell in grid) for number in range(6)])
    return counts.argmax(0).astype(np.uint8)
